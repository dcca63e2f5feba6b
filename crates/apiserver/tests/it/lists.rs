use http::Method;
use serde_json::json;

use crate::{CONFIG_MAPS, House, config_map};

async fn filled() -> House {
    let house = House::open().await;
    for (at, tier) in ["x", "y", "z", "x", "y", "z", "x"].iter().enumerate() {
        let mut object = config_map(&format!("p{at}"), json!({}));
        object["metadata"]["labels"] = json!({"tier": tier});
        house.post(CONFIG_MAPS, &object).await.is(201);
    }
    house
}

fn names(list: &serde_json::Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|it| it["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn selectors_choose() {
    let house = filled().await;
    for (query, want) in [
        ("labelSelector=tier%3Dx", vec!["p0", "p3", "p6"]),
        ("labelSelector=tier+in+(x,z)", vec!["p0", "p2", "p3", "p5", "p6"]),
        ("labelSelector=tier!%3Dx,tier", vec!["p1", "p2", "p4", "p5"]),
        ("fieldSelector=metadata.name%3Dp1", vec!["p1"]),
        ("fieldSelector=metadata.name%3Dp1&labelSelector=tier%3Dx", vec![]),
        (
            "fieldSelector=metadata.name!%3Dp1,metadata.namespace%3Ddefault&labelSelector=tier",
            vec!["p0", "p2", "p3", "p4", "p5", "p6"],
        ),
    ] {
        let list = house.get(&format!("{CONFIG_MAPS}?{query}")).await.is(200);
        assert_eq!(names(&list), want, "{query}");
    }
    let bad = house.get(&format!("{CONFIG_MAPS}?labelSelector=tier+in+(x")).await;
    assert!(bad.code == 400 && bad.message().contains("unable to parse requirement"), "{}", bad.text);
    let unknown = house.get(&format!("{CONFIG_MAPS}?fieldSelector=spec.x%3Dy")).await;
    assert_eq!(
        unknown.message(),
        r#""spec.x" is not a known field selector: only "metadata.name", "metadata.namespace""#
    );
}

#[tokio::test]
async fn pages_show_one_state_whatever_is_written_meanwhile() {
    let house = filled().await;
    for query in ["limit=2", "limit=2&labelSelector=tier"] {
        let mut seen = Vec::new();
        let mut page = house.get(&format!("{CONFIG_MAPS}?{query}")).await.is(200);
        let rev = page["metadata"]["resourceVersion"].clone();
        loop {
            seen.extend(names(&page));
            let Some(token) = page["metadata"]["continue"].as_str().map(str::to_owned) else { break };
            let late = format!("late-{}-{}", query.len(), seen.len());
            let mut object = config_map(&late, json!({}));
            object["metadata"]["labels"] = json!({"tier": "x"});
            house.post(CONFIG_MAPS, &object).await.is(201);
            page = house.get(&format!("{CONFIG_MAPS}?{query}&continue={token}")).await.is(200);
            assert_eq!(page["metadata"]["resourceVersion"], rev);
        }
        seen.retain(|name| name != "kube-root-ca.crt" && !name.starts_with("late"));
        assert_eq!(seen, ["p0", "p1", "p2", "p3", "p4", "p5", "p6"], "{query}");
    }
    assert_eq!(house.get(&format!("{CONFIG_MAPS}?continue=rubbish")).await.code, 400);
}

#[tokio::test]
async fn a_revision_is_met_exactly_or_not_older() {
    let house = House::open().await;
    house.post(CONFIG_MAPS, &config_map("a", json!({}))).await.is(201);
    let rev = house.get(CONFIG_MAPS).await.is(200)["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    house.post(CONFIG_MAPS, &config_map("b", json!({}))).await.is(201);
    let exact = house.get(&format!("{CONFIG_MAPS}?resourceVersion={rev}&resourceVersionMatch=Exact")).await.is(200);
    assert!(!names(&exact).contains(&"b".to_owned()) && exact["metadata"]["resourceVersion"] == rev.as_str());
    let newer =
        house.get(&format!("{CONFIG_MAPS}?resourceVersion={rev}&resourceVersionMatch=NotOlderThan")).await.is(200);
    assert!(names(&newer).contains(&"b".to_owned()));
    for (query, code) in [
        ("resourceVersion=1&resourceVersionMatch=Foo", 422),
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("resourceVersion=abc", 400),
        ("limit=abc", 400),
    ] {
        assert_eq!(house.get(&format!("{CONFIG_MAPS}?{query}")).await.code, code, "{query}");
    }
}

#[tokio::test]
async fn answers_have_the_shape_that_was_asked_for() {
    let house = filled().await;
    let ask = async |accept: &str, path: &str| house.send(Method::GET, path, &[("accept", accept)], "").await;
    let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", CONFIG_MAPS).await.is(200);
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!((table["kind"].as_str().unwrap(), columns), ("Table", vec!["Name", "Data", "Age"]));
    assert_eq!(table["rows"][1]["object"]["kind"], "PartialObjectMetadata");
    let metadata = ask("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", CONFIG_MAPS).await.is(200);
    assert!(metadata["kind"] == "PartialObjectMetadataList" && metadata["items"][0].get("data").is_none());
    let yaml = ask("application/yaml", &format!("{CONFIG_MAPS}/p0")).await;
    assert!(yaml.code == 200 && yaml.text.contains("kind: ConfigMap\n"), "{}", yaml.text);
    assert_eq!(ask("text/html", CONFIG_MAPS).await.code, 406);
    let plain = house.get(CONFIG_MAPS).await.is(200);
    assert!(
        plain["kind"] == "ConfigMapList" && plain["items"][0].get("kind").is_none(),
        "items do not repeat what they are"
    );
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let house = filled().await;
    let gone = house.delete(&format!("{CONFIG_MAPS}?labelSelector=tier%3Dx")).await.is(200);
    assert_eq!(names(&gone), ["p0", "p3", "p6"]);
    let left = house.get(&format!("{CONFIG_MAPS}?labelSelector=tier")).await.is(200);
    assert_eq!(names(&left), ["p1", "p2", "p4", "p5"]);
}

#[tokio::test]
async fn large_answers_are_compressed_for_who_asks() {
    let house = House::open().await;
    house.post(CONFIG_MAPS, &config_map("big", json!({"k": "x".repeat(300_000)}))).await.is(201);
    for path in [format!("{CONFIG_MAPS}/big"), CONFIG_MAPS.to_owned()] {
        let request =
            http::Request::get(&path).header("accept-encoding", "gzip").body(kube::client::Body::empty()).unwrap();
        let response = house.client.send(request).await.unwrap();
        assert_eq!(response.headers()["content-encoding"], "gzip");
        let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        assert!(bytes.len() < 10_000);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut text).unwrap();
        assert!(text.contains("xxxx"));
    }
}
