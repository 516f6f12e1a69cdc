//! Service Auth, and authpb as it lies in a snapshot.

use super::{ResponseHeader, enums, messages};

messages! {
    UserAddOptions { no_password: bool = 1; }
    User { name: bytes = 1; password: bytes = 2; roles: repeated string = 3; options: UserAddOptions = 4; }
    Permission { perm_type ("permType"): enumeration PermissionType = 1; key: bytes = 2; range_end: bytes = 3; }
    Role { name: bytes = 1; key_permission ("keyPermission"): repeated Permission = 2; }

    AuthEnableRequest {}
    AuthEnableResponse { header: ResponseHeader = 1; }
    AuthDisableRequest {}
    AuthDisableResponse { header: ResponseHeader = 1; }
    AuthStatusRequest {}
    AuthStatusResponse { header: ResponseHeader = 1; enabled: bool = 2; auth_revision ("authRevision"): uint64 = 3; }
    AuthenticateRequest { name: string = 1; password: string = 2; }
    AuthenticateResponse { header: ResponseHeader = 1; token: string = 2; }
    AuthUserAddRequest {
        name: string = 1; password: string = 2; options: UserAddOptions = 3; hashed_password ("hashedPassword"): string = 4;
    }
    AuthUserAddResponse { header: ResponseHeader = 1; }
    AuthUserGetRequest { name: string = 1; }
    AuthUserGetResponse { header: ResponseHeader = 1; roles: repeated string = 2; }
    AuthUserDeleteRequest { name: string = 1; }
    AuthUserDeleteResponse { header: ResponseHeader = 1; }
    AuthUserChangePasswordRequest { name: string = 1; password: string = 2; hashed_password ("hashedPassword"): string = 3; }
    AuthUserChangePasswordResponse { header: ResponseHeader = 1; }
    AuthUserGrantRoleRequest { user: string = 1; role: string = 2; }
    AuthUserGrantRoleResponse { header: ResponseHeader = 1; }
    AuthUserRevokeRoleRequest { name: string = 1; role: string = 2; }
    AuthUserRevokeRoleResponse { header: ResponseHeader = 1; }
    AuthUserListRequest {}
    AuthUserListResponse { header: ResponseHeader = 1; users: repeated string = 2; }
    AuthRoleAddRequest { name: string = 1; }
    AuthRoleAddResponse { header: ResponseHeader = 1; }
    AuthRoleGetRequest { role: string = 1; }
    AuthRoleGetResponse { header: ResponseHeader = 1; perm: repeated Permission = 2; }
    AuthRoleListRequest {}
    AuthRoleListResponse { header: ResponseHeader = 1; roles: repeated string = 2; }
    AuthRoleDeleteRequest { role: string = 1; }
    AuthRoleDeleteResponse { header: ResponseHeader = 1; }
    AuthRoleGrantPermissionRequest { name: string = 1; perm: Permission = 2; }
    AuthRoleGrantPermissionResponse { header: ResponseHeader = 1; }
    AuthRoleRevokePermissionRequest { role: string = 1; key: bytes = 2; range_end: bytes = 3; }
    AuthRoleRevokePermissionResponse { header: ResponseHeader = 1; }
}

enums! {
    PermissionType { "READ" Read = 0, "WRITE" Write = 1, "READWRITE" ReadWrite = 2 }
}
