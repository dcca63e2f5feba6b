//! Hooks of a container's life.

use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;

use super::{Target, http, of_get, text};
use crate::pod::kubelet::spec;
use crate::pod::kubelet::world::World;

/// Runs one to its end. Errors in a kubelet's words.
pub(in crate::pod::kubelet) async fn hook<W: World>(
    target: &Target<'_, W>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    let whose = format!("Container \"{}\" in Pod \"{}\"", target.container.name, spec::full_name(target.pod));
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let said = command.join(" ");
        let failed = |error: String, output: &str| {
            format!("Exec lifecycle hook ([{said}]) for {whose} failed - error: {error}, message: {output:?}")
        };
        return match target.exec(command.clone()).await {
            Ok(ran) if ran.code == 0 => Ok(()),
            Ok(ran) => Err(failed(format!("command '{said}' exited with {}: ", ran.code), &text(&ran.output))),
            Err(error) => Err(failed(kit::chain(&error), "")),
        };
    }
    if let Some(get) = &hook.http_get {
        let path = get.path.as_deref().unwrap_or_default();
        let failed = |error: String| format!("HTTP lifecycle hook ({path}) for {whose} failed - error: {error}");
        let url = of_get(target.container, get).map_err(&failed)?;
        let headers = get.http_headers.as_deref().unwrap_or_default();
        // Whatever it answers, it has been told.
        let answer = http::ask(target, &url, headers).await.map(drop);
        return answer.map_err(|error| failed(format!("Get \"{}\": {error}", url.text(&target.address))));
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    let message = format!("Cannot run handler: invalid handler for {whose}");
    Err(message)
}
