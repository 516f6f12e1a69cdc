//! Service Auth.

use bytes::Bytes;
use tonic::Status;

use super::{Member, grpc};
use crate::api;
use crate::auth::Identity;

impl Member {
    /// Answers `/etcdserverpb.Auth/METHOD`.
    pub async fn auth_call(&self, method: &str, who: Option<Identity>, body: &[u8]) -> Result<Bytes, Status> {
        let auth = &self.auth;
        let own = matches!(method, "Authenticate" | "UserGet" | "RoleGet");
        if !own {
            auth.check_admin(&who)?;
        }
        macro_rules! done {
            ($response:ident) => {
                grpc::frame(&api::$response { header: self.auth_header() })
            };
        }
        Ok(match method {
            "AuthEnable" => {
                auth.enable().await?;
                done!(AuthEnableResponse)
            }
            "AuthDisable" => {
                auth.disable().await?;
                done!(AuthDisableResponse)
            }
            "AuthStatus" => grpc::frame(&api::AuthStatusResponse {
                header: self.auth_header(),
                enabled: auth.enabled(),
                auth_revision: auth.revision(),
            }),
            "Authenticate" => {
                let request: api::AuthenticateRequest = grpc::decode(body)?;
                let token = auth.authenticate(&request.name, request.password).await?;
                grpc::frame(&api::AuthenticateResponse { header: self.auth_header(), token })
            }
            "UserAdd" => {
                auth.user_add(grpc::decode(body)?).await?;
                done!(AuthUserAddResponse)
            }
            "UserGet" => {
                let request: api::AuthUserGetRequest = grpc::decode(body)?;
                let roles = auth.user_roles(&who, &request.name)?;
                grpc::frame(&api::AuthUserGetResponse { header: self.auth_header(), roles })
            }
            "UserList" => {
                grpc::frame(&api::AuthUserListResponse { header: self.auth_header(), users: auth.users() })
            }
            "UserDelete" => {
                let request: api::AuthUserDeleteRequest = grpc::decode(body)?;
                auth.user_delete(&request.name).await?;
                done!(AuthUserDeleteResponse)
            }
            "UserChangePassword" => {
                auth.user_change_password(grpc::decode(body)?).await?;
                done!(AuthUserChangePasswordResponse)
            }
            "UserGrantRole" => {
                let request: api::AuthUserGrantRoleRequest = grpc::decode(body)?;
                auth.user_grant_role(&request.user, &request.role).await?;
                done!(AuthUserGrantRoleResponse)
            }
            "UserRevokeRole" => {
                let request: api::AuthUserRevokeRoleRequest = grpc::decode(body)?;
                auth.user_revoke_role(&request.name, &request.role).await?;
                done!(AuthUserRevokeRoleResponse)
            }
            "RoleAdd" => {
                let request: api::AuthRoleAddRequest = grpc::decode(body)?;
                auth.role_add(&request.name).await?;
                done!(AuthRoleAddResponse)
            }
            "RoleGet" => {
                let request: api::AuthRoleGetRequest = grpc::decode(body)?;
                let perm = auth.role_permissions(&who, &request.role)?;
                grpc::frame(&api::AuthRoleGetResponse { header: self.auth_header(), perm })
            }
            "RoleList" => {
                grpc::frame(&api::AuthRoleListResponse { header: self.auth_header(), roles: auth.roles() })
            }
            "RoleDelete" => {
                let request: api::AuthRoleDeleteRequest = grpc::decode(body)?;
                auth.role_delete(&request.role).await?;
                done!(AuthRoleDeleteResponse)
            }
            "RoleGrantPermission" => {
                let request: api::AuthRoleGrantPermissionRequest = grpc::decode(body)?;
                auth.role_grant(&request.name, request.perm).await?;
                done!(AuthRoleGrantPermissionResponse)
            }
            "RoleRevokePermission" => {
                let request: api::AuthRoleRevokePermissionRequest = grpc::decode(body)?;
                auth.role_revoke(&request.role, &request.key, &request.range_end).await?;
                done!(AuthRoleRevokePermissionResponse)
            }
            _ => return Err(unknown("etcdserverpb.Auth", method)),
        })
    }

    fn auth_header(&self) -> Option<api::ResponseHeader> {
        self.header.message(self.engine.current_revision())
    }
}

/// What gRPC answers to a method that a service does not have.
pub fn unknown(service: &str, method: &str) -> Status {
    Status::unimplemented(format!("unknown method {method} for service {service}"))
}
