//! etcd's errors: the code and the text that clients compare.

use storage::Error;
use tonic::{Code, Status};

/// One of etcd's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub text: &'static str,
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        Status::new(failure.code, failure.text)
    }
}

macro_rules! failures {
    ($($name:ident = $code:ident $text:literal;)+) => {
        $(pub const $name: Failure = Failure { code: Code::$code, text: concat!("etcdserver: ", $text) };)+
    };
}

failures! {
    EMPTY_KEY = InvalidArgument "key is not provided";
    KEY_NOT_FOUND = InvalidArgument "key not found";
    VALUE_PROVIDED = InvalidArgument "value is provided";
    LEASE_PROVIDED = InvalidArgument "lease is provided";
    TOO_MANY_OPS = InvalidArgument "too many operations in txn request";
    DUPLICATE_KEY = InvalidArgument "duplicate key given in txn request";
    INVALID_CLIENT_API_VERSION = InvalidArgument "invalid client api version";
    INVALID_SORT_OPTION = InvalidArgument "invalid sort option";
    COMPACTED = OutOfRange "mvcc: required revision has been compacted";
    FUTURE_REVISION = OutOfRange "mvcc: required revision is a future revision";
    NO_SPACE = ResourceExhausted "mvcc: database space exceeded";
    LEASE_NOT_FOUND = NotFound "requested lease not found";
    LEASE_EXISTS = FailedPrecondition "lease already exists";
    LEASE_TTL_TOO_LARGE = OutOfRange "too large lease TTL";
    PEER_URL_EXISTS = FailedPrecondition "Peer URLs already exists";
    MEMBER_NOT_ENOUGH_STARTED = FailedPrecondition "re-configuration failed due to not enough started members";
    MEMBER_BAD_URLS = InvalidArgument "given member URLs are invalid";
    MEMBER_NOT_FOUND = NotFound "member not found";
    MEMBER_NOT_LEARNER = FailedPrecondition "can only promote a learner member";
    REQUEST_TOO_LARGE = InvalidArgument "request is too large";
    ROOT_USER_NOT_EXIST = FailedPrecondition "root user does not exist";
    ROOT_ROLE_NOT_EXIST = FailedPrecondition "root user does not have root role";
    USER_ALREADY_EXISTS = FailedPrecondition "user name already exists";
    USER_EMPTY = InvalidArgument "user name is empty";
    USER_NOT_FOUND = FailedPrecondition "user name not found";
    ROLE_ALREADY_EXISTS = FailedPrecondition "role name already exists";
    ROLE_NOT_FOUND = FailedPrecondition "role name not found";
    ROLE_EMPTY = InvalidArgument "role name is empty";
    AUTH_FAILED = InvalidArgument "authentication failed, invalid user ID or password";
    PERMISSION_NOT_GIVEN = InvalidArgument "permission not given";
    PERMISSION_DENIED = PermissionDenied "permission denied";
    ROLE_NOT_GRANTED = FailedPrecondition "role is not granted to the user";
    PERMISSION_NOT_GRANTED = FailedPrecondition "permission is not granted to the role";
    AUTH_NOT_ENABLED = FailedPrecondition "authentication is not enabled";
    INVALID_AUTH_TOKEN = Unauthenticated "invalid auth token";
    INVALID_AUTH_MGMT = InvalidArgument "invalid auth management";
    AUTH_OLD_REVISION = InvalidArgument "revision of auth store is old";
    STOPPED = Unavailable "server stopped";
    CORRUPT = DataLoss "corrupt cluster";
    BAD_LEADER_TRANSFEREE = FailedPrecondition "bad leader transferee";
    WRONG_DOWNGRADE_VERSION = InvalidArgument "wrong downgrade target version format";
    INVALID_DOWNGRADE_TARGET = InvalidArgument "invalid downgrade target version";
    DOWNGRADE_IN_PROCESS = FailedPrecondition "cluster has a downgrade job in progress";
}

/// What the engine's error is to a client.
pub fn status(error: Error) -> Status {
    let failure = match error {
        Error::Compacted { .. } => COMPACTED,
        Error::FutureRevision { .. } => FUTURE_REVISION,
        Error::LeaseNotFound => LEASE_NOT_FOUND,
        Error::LeaseExists => LEASE_EXISTS,
        Error::LeaseTtlTooLarge => LEASE_TTL_TOO_LARGE,
        Error::KeyNotFound => KEY_NOT_FOUND,
        Error::NoSpace => NO_SPACE,
        Error::Corrupt(_) => CORRUPT,
        Error::TooSlow => return Status::unavailable(error.to_string()),
        Error::Unavailable(text) => return Status::unavailable(format!("etcdserver: {text}")),
    };
    failure.into()
}
