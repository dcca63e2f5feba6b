//! A webhook on loopback: what it does is in the path that it is asked on.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use kit::Tasks;
use serde_json::{Value, json};

use crate::echo::{certified, listen};

pub(crate) struct Hook {
    pub(crate) at: SocketAddr,
    /// What a `caBundle` says.
    pub(crate) authority: String,
}

impl Hook {
    /// Answers until the tasks end. Its certificate is for 127.0.0.1 and `hook.default.svc`.
    pub(crate) async fn serve(tasks: &Tasks) -> Self {
        let (acceptor, certificate) = certified(&["127.0.0.1", "hook.default.svc"]);
        let at = listen(tasks, Ipv4Addr::LOCALHOST.into(), Some(acceptor), answer).await;
        Self { at, authority: STANDARD.encode(certificate) }
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let review = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&review).unwrap();
    let (status, body) = match path.as_str() {
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            (200, String::new())
        }
        "/broken" => (500, "boom".to_owned()),
        "/missing" => (404, "nothing here".to_owned()),
        "/garbage" => (200, "{".to_owned()),
        "/large" => (200, " ".repeat(4 << 20)),
        "/nothing" => (200, json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}).to_string()),
        path => (200, reviewed(path, &query, &review["request"]).to_string()),
    };
    Ok(Response::builder().status(status).body(Full::from(body)).unwrap())
}

fn reviewed(path: &str, query: &str, request: &Value) -> Value {
    let patch = |operations: Value| json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())});
    let mut response = match path.split('/').nth(1).unwrap_or_default() {
        "deny" => json!({"allowed": false}),
        "explain" => json!({"allowed": false, "status": {"code": 409, "reason": "Busy", "message": "not now",
            "details": {"name": "n", "kind": "k", "causes": [{"message": "why", "field": "spec.x"}]}}}),
        "reason" => json!({"allowed": false, "status": {"code": 200, "status": "Success", "reason": "Because"}}),
        "tell" => json!({"allowed": false, "warnings": ["no"], "auditAnnotations": {"why": "because", "not/so": "x"}}),
        "warn" => json!({"allowed": true, "warnings": ["be careful", "really"]}),
        "echo" => {
            let mut seen = request.clone();
            for object in ["object", "oldObject"] {
                if let Some(metadata) = seen.pointer_mut(&format!("/{object}/metadata")) {
                    for field in ["managedFields", "resourceVersion", "uid", "creationTimestamp"] {
                        metadata.as_object_mut().unwrap().shift_remove(field);
                    }
                }
            }
            let fields = seen.as_object_mut().unwrap();
            fields.shift_remove("uid");
            // Administrators are called differently.
            if fields["userInfo"]["username"] != "jane" {
                fields.shift_remove("userInfo");
            }
            seen.sort_all_objects();
            json!({"allowed": false, "status": {"message": format!("{query} {seen}")}})
        }
        // Adds a label, and says in its value which labels it saw.
        "label" => {
            let name = path.split('/').nth(2).unwrap_or_default();
            let labels = request.pointer("/object/metadata/labels").and_then(Value::as_object);
            let mut seen: Vec<&str> = labels.into_iter().flatten().map(|it| it.0.as_str()).collect();
            seen.sort_unstable();
            match labels {
                Some(_) => {
                    patch(json!([{"op": "add", "path": format!("/metadata/labels/{name}"), "value": seen.join(".")}]))
                }
                None => patch(json!([{"op": "add", "path": "/metadata/labels", "value": {name: ""}}])),
            }
        }
        "data" => patch(
            json!([{"op": "add", "path": "/data", "value": {"from": "hook"}}, {"op": "add", "path": "/unknown", "value": 1}]),
        ),
        "unpatchable" => patch(json!([{"op": "remove", "path": "/data/none"}])),
        "wrong" => patch(json!([{"op": "add", "path": "/data", "value": {"a": 1}}])),
        "untyped" => json!({"allowed": true, "patch": STANDARD.encode("[]")}),
        "foreign" => json!({"allowed": true, "uid": "another"}),
        _ => json!({"allowed": true}),
    };
    if response.get("uid").is_none() {
        response["uid"] = request["uid"].clone();
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}
