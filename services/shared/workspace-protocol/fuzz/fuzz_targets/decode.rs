//! Any bytes: a message that is the same after another round, or an error; no conversion panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shipote_workspace_protocol::{Request, Response, convert, decode, encode};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = decode::<Request>(bytes) {
        let again = encode(&request).and_then(|bytes| decode::<Request>(&bytes));
        assert_eq!(again.as_ref(), Ok(&request));
        match request {
            Request::WorkspaceCreate { spec } => drop(convert::workspace(spec)),
            Request::PipelineRun { spec, vars, .. } => drop(convert::pipeline(&spec, &vars)),
            _ => {}
        }
    }
    if let Ok(response) = decode::<Response>(bytes) {
        encode(&response).expect("what was decoded can be encoded");
    }
});
