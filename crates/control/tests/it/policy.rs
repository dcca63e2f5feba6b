use api::agents::*;
use serde_json::json;
use testkit::{House, instance, policy};

#[tokio::test(start_paused = true)]
async fn a_policy_counts_whom_it_binds_and_says_what_it_does_not_understand() {
    let house = House::open().await;
    house
        .create(&policy("careful", |it| {
            it.spec.tool_gating = Some(ToolGating { default_action: "perhaps".into(), rules: None });
        }))
        .await;
    let bound = |count: i64| {
        move |it: &SympoziumPolicy| it.status.as_ref().is_some_and(|status| status.bound_instances == Some(count))
    };
    let it = house.until("careful", bound(0)).await;
    let said = &it.status.unwrap().conditions.unwrap()[0];
    assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", "Invalid"));
    assert!(said.message.contains("perhaps"), "{}", said.message);
    for name in ["a", "b"] {
        house.create(&instance(name, |it| it.spec.policy_ref = Some("careful".into()))).await;
    }
    house.until("careful", bound(2)).await;
    house.edit::<SympoziumInstance>("a", json!({"spec": {"policyRef": "other"}})).await;
    house.until("careful", bound(1)).await;
    house.delete::<SympoziumInstance>("b").await;
    house.until("careful", bound(0)).await;
    house.end().await;
}
