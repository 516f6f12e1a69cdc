//! What an API error means to a controller.

pub(crate) trait ApiError {
    fn code(&self) -> u16;

    fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    fn is_conflict(&self) -> bool {
        self.code() == 409
    }

    fn is_already_exists(&self) -> bool;

    /// The namespace is going away: creating in it is pointless.
    fn is_namespace_terminating(&self) -> bool;
}

impl ApiError for kube::Error {
    fn code(&self) -> u16 {
        match self {
            kube::Error::Api(status) => status.code,
            _ => 0,
        }
    }

    fn is_already_exists(&self) -> bool {
        matches!(self, kube::Error::Api(status) if status.reason == "AlreadyExists")
    }

    fn is_namespace_terminating(&self) -> bool {
        let kube::Error::Api(status) = self else { return false };
        let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
        causes.iter().any(|c| c.reason == "NamespaceTerminating")
    }
}

pub(crate) trait IgnoreNotFound<T> {
    /// `None` where the object is gone already.
    fn ignore_not_found(self) -> kube::Result<Option<T>>;
}

impl<T> IgnoreNotFound<T> for kube::Result<T> {
    fn ignore_not_found(self) -> kube::Result<Option<T>> {
        match self {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The message a Status carries, for events and conditions; other errors as they print.
pub(crate) fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
