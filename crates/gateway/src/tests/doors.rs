use super::*;

#[tokio::test]
async fn only_the_key_opens_the_api() {
    let house = House::new();
    house.cluster.put("u1", json!({}));
    let router = house.router();
    for (header, said) in [
        (None, "Send the API key as 'Authorization: Bearer KEY'."),
        (Some("the-key"), "Send the API key as"),
        (Some("Basic the-key"), "Send the API key as"),
        (Some("Bearer"), "Send the API key as"),
        (Some("Bearer "), "This is not the API key."),
        (Some("Bearer the-kez"), "This is not the API key."),
        (Some("Bearer the-key2"), "This is not the API key."),
        (Some("Bearer the-ke"), "This is not the API key."),
    ] {
        let headers: Vec<_> = header.iter().map(|it| ("authorization", *it)).collect();
        for path in [EVENTS, "/api/v1/namespaces/ns/runs/none/events"] {
            let response = get(&router, path, &headers).await;
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let (status, detail) = problem(response).await;
            assert!(status == 401 && detail.starts_with(said), "{header:?}: {detail}");
        }
    }
    assert_eq!(get(&router, EVENTS, &[("authorization", "bearer  the-key")]).await.status(), 200);
    let health = get(&router, "/healthz", &[]).await;
    assert_eq!(health.status(), 200);
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_that_says_so() {
    let house = House::new();
    let router = house.router();
    let key = ("authorization", "Bearer the-key");
    for (path, said) in [
        (EVENTS, "There is no AgentRun \"r\" in the namespace \"ns\"."),
        ("/api/v1/namespaces/..%2Fns/runs/r/events", "There is no AgentRun \"r\" in the namespace \"../ns\"."),
        ("/api/v1/namespaces/ns/runs/R%20/events", "There is no AgentRun \"R \" in the namespace \"ns\"."),
        ("/api/v1/namespaces/ns/runs/r", "There is nothing at /api/v1/namespaces/ns/runs/r."),
        ("/", "There is nothing at /."),
    ] {
        assert_eq!(problem(get(&router, path, &[key]).await).await, (StatusCode::NOT_FOUND, said.into()));
    }
    let post = Request::post("/healthz").body(Body::empty()).unwrap();
    assert_eq!(problem(router.clone().oneshot(post).await.unwrap()).await.0, 405);
    house.cluster.put("u1", json!({}));
    for id in ["x", "-1", "1.x", "1.1.1", "99999999999"] {
        let (status, detail) = problem(get(&router, EVENTS, &[key, ("last-event-id", id)]).await).await;
        assert!(status == 400 && detail.contains("Leave it out"), "{id}: {detail}");
    }
    let ended = get(&router, EVENTS, &[key, ("last-event-id", "end")]).await;
    assert_eq!(ended.status(), 204);
}

#[tokio::test]
async fn more_followers_than_there_is_room_for_are_told_to_come_again() {
    let house = House::new();
    house.submit("u1").await;
    house.cluster.put("u1", json!({}));
    let router = house.router();
    let mut streams = Vec::new();
    for _ in 0..512 {
        streams.push(Stream::open(&router, None).await);
    }
    let key = ("authorization", "Bearer the-key");
    let (status, detail) = problem(get(&router, EVENTS, &[key]).await).await;
    assert!(status == 503 && detail.contains("Try again"), "{detail}");
    streams.pop();
    let mut stream = Stream::open(&router, None).await;
    assert_eq!(stream.next().await.unwrap(), event("state", json!({"state": "queued"})));
}
