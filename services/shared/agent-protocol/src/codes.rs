//! The values of `code` in an `Error` answer.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* pub const $name: &str = stringify!($name);)*
        /// All of them.
        pub const ALL: &[&str] = &[$($name),*];
    };
}

codes! {
    /// Not JSON, an unknown method, a bad path or id, a message that fits no session.
    INVALID_REQUEST,
    /// The file or image does not exist.
    NOT_FOUND,
    /// A fault of the agent's own.
    INTERNAL_ERROR,
    /// An image could not be pulled.
    PULL_FAILED,
    /// An image could not be looked up.
    QUERY_FAILED,
    /// A command could not be run in an image.
    RUN_FAILED,
    /// A command could not be run in the agent's root.
    EXEC_FAILED,
    /// The program could not be started.
    SPAWN_FAILED,
    /// A file system could not be mounted, or a mount tag is unknown.
    MOUNT_FAILED,
    /// Reading or writing a file failed.
    FILE_IO_FAILED,
    /// An overlay could not be prepared.
    OVERLAY_FAILED,
    /// An overlay could not be removed.
    CLEANUP_FAILED,
    /// The storage could not be formatted.
    FORMAT_FAILED,
    /// The storage's state could not be read.
    STATUS_FAILED,
    /// Images could not be listed.
    LIST_FAILED,
    /// Unused images could not be removed.
    GC_FAILED,
    /// Something could not be created.
    CREATE_FAILED,
    /// Something could not be started.
    START_FAILED,
    /// Something could not be stopped.
    STOP_FAILED,
    /// Something could not be deleted.
    DELETE_FAILED,
    /// A layer could not be exported.
    EXPORT_FAILED,
    /// An answer could not be written as JSON.
    SERIALIZATION_ERROR,
    /// A frame over the limit.
    MESSAGE_TOO_LARGE,
    /// A child could not be waited for.
    WAIT_FAILED,
    /// The connection did not begin with the machine's secret.
    UNAUTHENTICATED,
    /// As many connections as the agent serves at once are open.
    TOO_MANY_CONNECTIONS,
    /// Nobody listens there in the guest.
    CONNECT_FAILED,
}
