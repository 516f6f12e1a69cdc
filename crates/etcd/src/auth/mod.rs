//! Users, roles and what they may do: etcd's access control.
//!
//! The records lie in the engine's meta bucket as etcd keeps them (`authUsers/NAME`, `authRoles/NAME`, `auth/…`), so that they
//! travel with snapshots. One copy is kept decoded; a change is made on a copy of that, written, and then becomes the present
//! one.

pub mod permission;
pub mod token;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;
use storage::KeyRange;
use tonic::Status;

use crate::Engine;
use crate::api::{self, Permission, PermissionType, Role, User, UserAddOptions};
use crate::rpc::failure::{self, Failure};
use permission::{Access, Permissions};
use token::{Holder, Tokens};

const ROOT: &str = "root";
const USERS: &str = "authUsers/";
const ROLES: &str = "authRoles/";
const ENABLED: &str = "auth/authEnabled";
const REVISION: &str = "auth/authRevision";

/// Who makes a request, when access control is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    /// At which revision of users and roles; 0 for nobody.
    pub revision: u64,
}

/// All users and roles.
#[derive(Clone, Default)]
struct State {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
    permissions: HashMap<String, Permissions>,
}

/// Access control over an engine.
pub struct Auth {
    engine: Engine,
    state: ArcSwap<State>,
    changing: tokio::sync::Mutex<()>,
    tokens: Tokens,
    bcrypt_cost: u32,
}

type Changes = Vec<(Bytes, Option<Bytes>)>;

impl Auth {
    pub async fn open(engine: Engine, tokens: Tokens, bcrypt_cost: u32) -> Result<Auth, storage::Error> {
        let auth = Auth {
            state: ArcSwap::from_pointee(State::read(&engine)),
            engine,
            changing: tokio::sync::Mutex::default(),
            tokens,
            bcrypt_cost,
        };
        if auth.state.load().revision == 0 {
            let first = |state: &mut State, _: &mut Changes| {
                state.revision = 1;
                Ok(())
            };
            if let Err(status) = auth.change(false, first).await {
                return Err(storage::Error::Unavailable(status.message().to_owned()));
            }
        }
        Ok(auth)
    }

    pub fn enabled(&self) -> bool {
        self.state.load().enabled
    }

    pub fn revision(&self) -> u64 {
        self.state.load().revision
    }

    /// The caller by token or, failing that, by the common name of a client certificate. `None`: nobody in particular.
    pub fn identify(
        &self,
        token: Option<&str>,
        common_name: Option<&str>,
    ) -> Result<Option<Identity>, Failure> {
        let state = self.state.load();
        if !state.enabled {
            return Ok(None);
        }
        if let Some(token) = token {
            let Some(Holder { user, revision }) = self.tokens.holder(token, state.revision) else {
                return Err(failure::INVALID_AUTH_TOKEN);
            };
            return Ok(Some(Identity { user, revision }));
        }
        Ok(common_name.map(|name| Identity { user: name.to_owned(), revision: state.revision }))
    }

    /// Whether the caller may read or write every key of the range.
    pub fn check(&self, who: &Option<Identity>, access: Access, range: &KeyRange) -> Result<(), Failure> {
        self.state.load().check(who, access, range)
    }

    pub fn check_admin(&self, who: &Option<Identity>) -> Result<(), Failure> {
        self.state.load().check_admin(who)
    }

    /// What was decided at `who`'s revision holds still.
    pub fn check_fresh(&self, who: &Option<Identity>) -> Result<(), Failure> {
        match who {
            Some(who) if who.revision != 0 && who.revision != self.revision() => {
                Err(failure::AUTH_OLD_REVISION)
            }
            _ => Ok(()),
        }
    }

    /// Writes what `work` changes; a change that moves the revision makes older tokens with a revision stale.
    async fn change(
        &self,
        moves_revision: bool,
        work: impl FnOnce(&mut State, &mut Changes) -> Result<(), Failure>,
    ) -> Result<(), Status> {
        let _one = self.changing.lock().await;
        let mut state = State::clone(&self.state.load());
        let before = (state.enabled, state.revision);
        let mut changes = Vec::new();
        work(&mut state, &mut changes)?;
        if moves_revision && !changes.is_empty() {
            state.revision += 1;
        }
        if state.enabled != before.0 {
            changes.push((ENABLED.into(), Some(Bytes::copy_from_slice(&[u8::from(state.enabled)]))));
        }
        if state.revision != before.1 {
            changes.push((REVISION.into(), Some(Bytes::copy_from_slice(&state.revision.to_be_bytes()))));
        }
        if changes.is_empty() {
            return Ok(());
        }
        // The lock makes this the only writer of these records.
        let _ = self.engine.meta_write(None, changes).await.map_err(failure::status)?;
        state.merge_permissions();
        self.state.store(Arc::new(state));
        Ok(())
    }

    pub async fn enable(&self) -> Result<(), Status> {
        self.change(false, |state, _| {
            if state.enabled {
                return Ok(());
            }
            let root = state.users.get(ROOT).ok_or(failure::ROOT_USER_NOT_EXIST)?;
            if !is_root(root) {
                return Err(failure::ROOT_ROLE_NOT_EXIST);
            }
            state.enabled = true;
            Ok(())
        })
        .await
    }

    pub async fn disable(&self) -> Result<(), Status> {
        self.change(false, |state, _| {
            if state.enabled {
                state.enabled = false;
                state.revision += 1;
            }
            Ok(())
        })
        .await?;
        self.tokens.forget_all();
        Ok(())
    }

    /// Checks the password and makes a token.
    pub async fn authenticate(&self, name: &str, password: String) -> Result<String, Status> {
        loop {
            let state = self.state.load_full();
            if !state.enabled {
                return Err(failure::AUTH_NOT_ENABLED.into());
            }
            let user = state.users.get(name).ok_or(failure::AUTH_FAILED)?;
            if no_password(user) {
                // Not in the table of known errors, so etcd answers code Unknown.
                return Err(Status::unknown(
                    "auth: authentication failed, password was given for no password user",
                ));
            }
            let hash = String::from_utf8_lossy(&user.password).into_owned();
            let password = password.clone();
            let same = hashing(move || bcrypt::verify(password, &hash).unwrap_or(false)).await?;
            if !same {
                return Err(failure::AUTH_FAILED.into());
            }
            // The password may have been changed while it was compared.
            if state.revision == self.revision() {
                let index = self.engine.applied_index();
                return self.tokens.assign(name, state.revision, index).map_err(Status::unknown);
            }
        }
    }

    async fn hash(&self, password: &str, hashed: &str) -> Result<Bytes, Status> {
        if password.is_empty() && !hashed.is_empty() {
            let decoded = STANDARD.decode(hashed).map_err(|_| {
                Status::unknown("auth: authentication failed, password was given for no password user")
            })?;
            return Ok(decoded.into());
        }
        let (password, cost) = (password.to_owned(), self.bcrypt_cost);
        let hash = hashing(move || bcrypt::hash(password, cost)).await?;
        hash.map(|text| text.into_bytes().into()).map_err(|e| Status::unknown(e.to_string()))
    }

    pub async fn user_add(&self, request: api::AuthUserAddRequest) -> Result<(), Status> {
        let options = request.options.unwrap_or_default();
        let password = if options.no_password {
            Bytes::new()
        } else {
            self.hash(&request.password, &request.hashed_password).await?
        };
        self.change(true, |state, changes| {
            if request.name.is_empty() {
                return Err(failure::USER_EMPTY);
            }
            if state.users.contains_key(&request.name) {
                return Err(failure::USER_ALREADY_EXISTS);
            }
            let name = Bytes::copy_from_slice(request.name.as_bytes());
            state.put_user(User { name, password, roles: Vec::new(), options: Some(options) }, changes);
            Ok(())
        })
        .await
    }

    pub async fn user_delete(&self, name: &str) -> Result<(), Status> {
        self.change(true, |state, changes| {
            if state.enabled && name == ROOT {
                return Err(failure::INVALID_AUTH_MGMT);
            }
            state.users.remove(name).ok_or(failure::USER_NOT_FOUND)?;
            changes.push((format!("{USERS}{name}").into(), None));
            Ok(())
        })
        .await?;
        self.tokens.forget_user(name);
        Ok(())
    }

    pub async fn user_change_password(
        &self,
        request: api::AuthUserChangePasswordRequest,
    ) -> Result<(), Status> {
        let password = if request.password.is_empty() && request.hashed_password.is_empty() {
            Bytes::new()
        } else {
            self.hash(&request.password, &request.hashed_password).await?
        };
        self.change(true, |state, changes| {
            let mut user = state.users.get(&request.name).cloned().ok_or(failure::USER_NOT_FOUND)?;
            user.password = if no_password(&user) { Bytes::new() } else { password };
            state.put_user(user, changes);
            Ok(())
        })
        .await?;
        self.tokens.forget_user(&request.name);
        Ok(())
    }

    pub async fn user_grant_role(&self, name: &str, role: &str) -> Result<(), Status> {
        self.change(true, |state, changes| {
            let mut user = state.users.get(name).cloned().ok_or(failure::USER_NOT_FOUND)?;
            if role != ROOT && !state.roles.contains_key(role) {
                return Err(failure::ROLE_NOT_FOUND);
            }
            if let Err(at) = user.roles.binary_search_by(|r| r.as_str().cmp(role)) {
                user.roles.insert(at, role.to_owned());
                state.put_user(user, changes);
            }
            Ok(())
        })
        .await
    }

    pub async fn user_revoke_role(&self, name: &str, role: &str) -> Result<(), Status> {
        self.change(true, |state, changes| {
            if state.enabled && name == ROOT && role == ROOT {
                return Err(failure::INVALID_AUTH_MGMT);
            }
            let mut user = state.users.get(name).cloned().ok_or(failure::USER_NOT_FOUND)?;
            let before = user.roles.len();
            user.roles.retain(|r| r != role);
            if user.roles.len() == before {
                return Err(failure::ROLE_NOT_GRANTED);
            }
            state.put_user(user, changes);
            Ok(())
        })
        .await
    }

    /// The roles of a user; they are told to an administrator and to the user itself.
    pub fn user_roles(&self, who: &Option<Identity>, name: &str) -> Result<Vec<String>, Failure> {
        let state = self.state.load();
        if let Err(failure) = state.check_admin(who)
            && who.as_ref().is_none_or(|who| who.user != name)
        {
            return Err(failure);
        }
        state.users.get(name).map(|u| u.roles.clone()).ok_or(failure::USER_NOT_FOUND)
    }

    pub fn users(&self) -> Vec<String> {
        self.state.load().users.keys().cloned().collect()
    }

    pub fn roles(&self) -> Vec<String> {
        self.state.load().roles.keys().cloned().collect()
    }

    /// The permissions of a role; they are told to an administrator and to those who have the role.
    pub fn role_permissions(&self, who: &Option<Identity>, name: &str) -> Result<Vec<Permission>, Failure> {
        let state = self.state.load();
        if let Err(failure) = state.check_admin(who) {
            let user = who.as_ref().and_then(|who| state.users.get(&who.user));
            if !user.is_some_and(|user| user.roles.iter().any(|r| r == name)) {
                return Err(failure);
            }
        }
        let role = state.roles.get(name).ok_or(failure::ROLE_NOT_FOUND)?;
        if name == ROOT {
            let range_end = Bytes::from_static(b"\0");
            return Ok(vec![Permission {
                perm_type: PermissionType::ReadWrite as i32,
                key: Bytes::new(),
                range_end,
            }]);
        }
        Ok(role.key_permission.clone())
    }

    pub async fn role_add(&self, name: &str) -> Result<(), Status> {
        self.change(true, |state, changes| {
            if name.is_empty() {
                return Err(failure::ROLE_EMPTY);
            }
            if state.roles.contains_key(name) {
                return Err(failure::ROLE_ALREADY_EXISTS);
            }
            state
                .put_role(Role { name: Bytes::copy_from_slice(name.as_bytes()), ..Role::default() }, changes);
            Ok(())
        })
        .await
    }

    pub async fn role_delete(&self, name: &str) -> Result<(), Status> {
        let mut touched = Vec::new();
        self.change(true, |state, changes| {
            if state.enabled && name == ROOT {
                return Err(failure::INVALID_AUTH_MGMT);
            }
            state.roles.remove(name).ok_or(failure::ROLE_NOT_FOUND)?;
            changes.push((format!("{ROLES}{name}").into(), None));
            let holders: Vec<User> =
                state.users.values().filter(|u| u.roles.iter().any(|r| r == name)).cloned().collect();
            for mut user in holders {
                user.roles.retain(|r| r != name);
                touched.push(String::from_utf8_lossy(&user.name).into_owned());
                state.put_user(user, changes);
            }
            Ok(())
        })
        .await?;
        for user in touched {
            self.tokens.forget_user(&user);
        }
        Ok(())
    }

    pub async fn role_grant(&self, name: &str, permission: Option<Permission>) -> Result<(), Status> {
        self.change(true, |state, changes| {
            let permission = permission.ok_or(failure::PERMISSION_NOT_GIVEN)?;
            if !permission::is_valid(&permission.key, &permission.range_end) {
                return Err(failure::INVALID_AUTH_MGMT);
            }
            let mut role = state.roles.get(name).cloned().ok_or(failure::ROLE_NOT_FOUND)?;
            let same = |p: &&mut Permission| p.key == permission.key && p.range_end == permission.range_end;
            match role.key_permission.iter_mut().find(same) {
                Some(there) => there.perm_type = permission.perm_type,
                None => role.key_permission.push(permission),
            }
            role.key_permission.sort_by(|a, b| a.key.cmp(&b.key));
            state.put_role(role, changes);
            Ok(())
        })
        .await
    }

    pub async fn role_revoke(&self, name: &str, key: &[u8], range_end: &[u8]) -> Result<(), Status> {
        self.change(true, |state, changes| {
            let mut role = state.roles.get(name).cloned().ok_or(failure::ROLE_NOT_FOUND)?;
            let before = role.key_permission.len();
            role.key_permission.retain(|p| p.key != key || p.range_end != range_end);
            if role.key_permission.len() == before {
                return Err(failure::PERMISSION_NOT_GRANTED);
            }
            state.put_role(role, changes);
            Ok(())
        })
        .await
    }
}

impl State {
    fn read(engine: &Engine) -> State {
        let number = |key: &str| engine.meta_get(key.as_bytes());
        let mut state = State {
            enabled: number(ENABLED).is_some_and(|v| v[..] == [1]),
            revision: number(REVISION).and_then(|v| v[..].try_into().ok()).map_or(0, u64::from_be_bytes),
            ..State::default()
        };
        for (_, value) in engine.meta_range(USERS.as_bytes()) {
            if let Ok(user) = User::decode(&value[..]) {
                state.users.insert(String::from_utf8_lossy(&user.name).into_owned(), user);
            }
        }
        for (_, value) in engine.meta_range(ROLES.as_bytes()) {
            if let Ok(role) = Role::decode(&value[..]) {
                state.roles.insert(String::from_utf8_lossy(&role.name).into_owned(), role);
            }
        }
        state.merge_permissions();
        state
    }

    fn merge_permissions(&mut self) {
        let of = |user: &User| {
            let roles = user.roles.iter().filter_map(|name| self.roles.get(name));
            Permissions::new(roles.flat_map(|role| &role.key_permission))
        };
        self.permissions = self.users.iter().map(|(name, user)| (name.clone(), of(user))).collect();
    }

    fn put_user(&mut self, user: User, changes: &mut Changes) {
        let name = String::from_utf8_lossy(&user.name).into_owned();
        changes.push((format!("{USERS}{name}").into(), Some(user.encode_to_vec().into())));
        self.users.insert(name, user);
    }

    fn put_role(&mut self, role: Role, changes: &mut Changes) {
        let name = String::from_utf8_lossy(&role.name).into_owned();
        changes.push((format!("{ROLES}{name}").into(), Some(role.encode_to_vec().into())));
        self.roles.insert(name, role);
    }

    fn check(&self, who: &Option<Identity>, access: Access, range: &KeyRange) -> Result<(), Failure> {
        if !self.enabled {
            return Ok(());
        }
        let who = who.as_ref().filter(|who| who.revision != 0).ok_or(failure::USER_EMPTY)?;
        if who.revision < self.revision {
            return Err(failure::AUTH_OLD_REVISION);
        }
        let user = self.users.get(&who.user).ok_or(failure::PERMISSION_DENIED)?;
        let allowed =
            is_root(user) || self.permissions.get(&who.user).is_some_and(|p| p.allow(access, range));
        if allowed { Ok(()) } else { Err(failure::PERMISSION_DENIED) }
    }

    fn check_admin(&self, who: &Option<Identity>) -> Result<(), Failure> {
        if !self.enabled {
            return Ok(());
        }
        let who = who.as_ref().filter(|who| !who.user.is_empty()).ok_or(failure::USER_EMPTY)?;
        let user = self.users.get(&who.user).ok_or(failure::USER_NOT_FOUND)?;
        if is_root(user) { Ok(()) } else { Err(failure::PERMISSION_DENIED) }
    }
}

fn is_root(user: &User) -> bool {
    user.roles.iter().any(|role| role == ROOT)
}

fn no_password(user: &User) -> bool {
    matches!(user.options, Some(UserAddOptions { no_password: true }))
}

/// bcrypt takes a tenth of a second by design, which belongs on a thread of its own.
async fn hashing<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))
}
