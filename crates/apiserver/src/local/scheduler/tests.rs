use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::info::Info;
use super::plan::{Plan, Volumes, plan};
use super::view::View;
use crate::local::reader::Kind;
use crate::local::tests::{all, create, house, until};

fn node(name: &str, more: Value) -> Arc<Node> {
    let mut it = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}});
    set(&mut it, more);
    Arc::new(serde_json::from_value(it).unwrap())
}

fn set(it: &mut Value, more: Value) {
    for (path, value) in more.as_object().unwrap() {
        let (at, last) = path.rsplit_once('/').unwrap();
        it.pointer_mut(at).unwrap()[last] = value.clone();
    }
}

fn pod(name: &str, more: Value) -> Arc<Pod> {
    let mut it = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": {}},
        "spec": {"containers": [{"name": "c", "resources": {}}]}, "status": {"phase": "Pending"}});
    set(&mut it, more);
    Arc::new(serde_json::from_value(it).unwrap())
}

fn view(nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> View {
    let mut view = View::default();
    view.namespaces.insert("default".into(), [("team".into(), "a".into())].into());
    for node in nodes {
        view.set_node(node.clone());
    }
    for pod in pods {
        view.set_pod(&pod.key(), pod);
    }
    view
}

fn planned(it: &Arc<Pod>, volumes: &Volumes, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
    plan(&Info::new(it.clone()), volumes, &view(nodes, pods), &[])
}

const NEVER: &str =
    "no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
const NONE: &str =
    "no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";

fn requests(cpu: &str) -> Value {
    json!({"requests": {"cpu": cpu}})
}

fn apart(key: &str) -> Value {
    json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}}]}})
}

fn near(key: &str, more: Value) -> Value {
    let mut term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}});
    term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}})
}

fn spread(key: &str) -> Value {
    json!([{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}}])
}

fn required(term: Value) -> Value {
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}})
}

const APP: &str = "/metadata/labels/app";
const AFFINITY: &str = "/spec/affinity";

/// One node and what is on it; `None` is that the pod can go there.
#[test]
fn a_pod_goes_where_everything_suits_it_and_otherwise_it_is_said_why_not() {
    let there = |more: Value| {
        let mut it = json!({"/spec/nodeName": "n"});
        it.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod("there", it)
    };
    let port =
        |port: u16, ip: &str| json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": port, "hostIP": ip}]}]);
    let taint = |effect: &str| json!({"/spec/taints": [{"key": "k", "value": "v", "effect": effect}]});
    let tolerate = |it: Value| json!({"/spec/tolerations": [it]});
    let no = json!({});
    let web = || there(json!({APP: "web"}));
    let expression = |operator: &str, values: Value| {
        required(json!({"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}))
    };
    let field =
        |name: &str| required(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}));
    let sized = || json!({"/metadata/labels": {"size": "5"}});
    let selector = Some("1 node(s) didn't match Pod's node affinity/selector");
    let taints = Some("1 node(s) had untolerated taint(s)");
    let ports = Some("1 node(s) didn't have free ports for the requested pod ports");
    for (at, it, others, why, curable) in [
        (no.clone(), no.clone(), vec![], None, false),
        (json!({"/spec/unschedulable": true}), no.clone(), vec![], Some("1 node(s) were unschedulable"), false),
        (
            json!({"/spec/unschedulable": true}),
            tolerate(json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"})),
            vec![],
            None,
            false,
        ),
        (taint("NoSchedule"), no.clone(), vec![], taints, false),
        (taint("NoExecute"), no.clone(), vec![], taints, false),
        (taint("PreferNoSchedule"), no.clone(), vec![], None, false),
        (taint("NoSchedule"), tolerate(json!({"key": "k", "value": "v"})), vec![], None, false),
        (taint("NoSchedule"), tolerate(json!({"key": "k", "value": "w"})), vec![], taints, false),
        (
            taint("NoSchedule"),
            tolerate(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})),
            vec![],
            taints,
            false,
        ),
        (taint("NoSchedule"), tolerate(json!({"operator": "Exists"})), vec![], None, false),
        (no.clone(), json!({"/spec/nodeSelector": {"a": "b"}}), vec![], selector, false),
        (no.clone(), json!({"/spec/nodeSelector": {"kubernetes.io/hostname": "n"}}), vec![], None, false),
        (sized(), json!({AFFINITY: expression("Gt", json!(["4"]))}), vec![], None, false),
        (sized(), json!({AFFINITY: expression("Lt", json!(["4"]))}), vec![], selector, false),
        (sized(), json!({AFFINITY: expression("NotIn", json!(["5"]))}), vec![], selector, false),
        (no.clone(), json!({AFFINITY: expression("DoesNotExist", json!([]))}), vec![], None, false),
        (no.clone(), json!({AFFINITY: required(json!({}))}), vec![], selector, false),
        (no.clone(), json!({AFFINITY: field("n")}), vec![], None, false),
        (
            no.clone(),
            json!({AFFINITY: field("other")}),
            vec![],
            Some("1 node(s) didn't satisfy plugin(s) [NodeAffinity]"),
            false,
        ),
        (
            no.clone(),
            json!({"/spec/containers": port(80, "")}),
            vec![there(json!({"/spec/containers": port(80, "10.0.0.1")}))],
            ports,
            true,
        ),
        (
            no.clone(),
            json!({"/spec/containers": port(80, "10.0.0.2")}),
            vec![there(json!({"/spec/containers": port(80, "10.0.0.1")}))],
            None,
            false,
        ),
        (no.clone(), json!({"/spec/containers/0/resources": requests("2")}), vec![], None, false),
        (
            no.clone(),
            json!({"/spec/containers/0/resources": requests("1500m")}),
            vec![there(json!({"/spec/containers/0/resources": requests("501m")}))],
            Some("1 Insufficient cpu"),
            true,
        ),
        (no.clone(), json!({"/spec/containers/0/resources": requests("3")}), vec![], Some("1 Insufficient cpu"), false),
        (
            no.clone(),
            json!({"/spec/containers/0/resources": {"requests": {"cpu": "3", "example.com/gpu": "1"}}}),
            vec![],
            Some("1 Insufficient cpu, 1 Insufficient example.com/gpu"),
            false,
        ),
        // What ended needs nothing.
        (
            no.clone(),
            json!({"/spec/containers/0/resources": requests("2")}),
            vec![there(json!({"/spec/containers/0/resources": requests("2"), "/status/phase": "Succeeded"}))],
            None,
            false,
        ),
        (json!({"/status/allocatable/pods": "1"}), no.clone(), vec![web()], Some("1 Too many pods"), true),
        (
            no.clone(),
            json!({AFFINITY: near("kubernetes.io/hostname", json!({}))}),
            vec![],
            Some("1 node(s) didn't match pod affinity rules"),
            false,
        ),
        (no.clone(), json!({AFFINITY: near("kubernetes.io/hostname", json!({}))}), vec![web()], None, false),
        // The first of them.
        (no.clone(), json!({APP: "web", AFFINITY: near("kubernetes.io/hostname", json!({}))}), vec![], None, false),
        (
            no.clone(),
            json!({AFFINITY: near("zone", json!({}))}),
            vec![web()],
            Some("1 node(s) didn't match pod affinity rules"),
            false,
        ),
        (
            no.clone(),
            json!({AFFINITY: near("kubernetes.io/hostname", json!({"namespaces": ["other"]}))}),
            vec![web()],
            Some("1 node(s) didn't match pod affinity rules"),
            false,
        ),
        (
            no.clone(),
            json!({AFFINITY: near("kubernetes.io/hostname", json!({"namespaceSelector": {"matchLabels": {"team": "a"}}}))}),
            vec![web()],
            None,
            false,
        ),
        (
            no.clone(),
            json!({AFFINITY: apart("kubernetes.io/hostname")}),
            vec![web()],
            Some("1 node(s) didn't match pod anti-affinity rules"),
            true,
        ),
        (
            no.clone(),
            json!({APP: "web"}),
            vec![there(json!({AFFINITY: apart("kubernetes.io/hostname")}))],
            Some("1 node(s) didn't satisfy existing pods anti-affinity rules"),
            true,
        ),
        (no.clone(), no.clone(), vec![there(json!({AFFINITY: apart("kubernetes.io/hostname")}))], None, false),
        (
            no.clone(),
            json!({"/spec/topologySpreadConstraints": spread("zone")}),
            vec![],
            Some("1 node(s) didn't match pod topology spread constraints (missing required label)"),
            false,
        ),
        (
            no.clone(),
            json!({APP: "web", "/spec/topologySpreadConstraints": spread("kubernetes.io/hostname")}),
            vec![web(), web()],
            None,
            false,
        ),
    ] {
        let said = format!("{it} on {at}");
        let want = match why {
            None => Plan::Bind("n".into()),
            Some(why) => Plan::No(format!("0/1 nodes are available: {why}. {}", if curable { NONE } else { NEVER })),
        };
        assert_eq!(planned(&pod("p", it), &Volumes::default(), &[node("n", at)], &others), want, "{said}");
    }
}

#[test]
fn volumes_say_where_a_pod_can_be() {
    let reach = |name: &str| {
        let term = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]}]});
        vec![serde_json::from_value(term).unwrap()]
    };
    let no = |why: &str, then: &str| Plan::No(format!("0/1 nodes are available: {why}. {then}"));
    let claims = || vec!["c".to_owned()];
    for (volumes, want) in [
        (Volumes { problem: Some("why".into()), ..Volumes::default() }, no("why", "not found")),
        (Volumes { reach: reach("n"), ..Volumes::default() }, Plan::Bind("n".into())),
        (
            Volumes { reach: reach("m"), ..Volumes::default() },
            no("1 node(s) didn't match PersistentVolume's node affinity", NEVER),
        ),
        (
            Volumes { lost: true, ..Volumes::default() },
            no("1 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)", NEVER),
        ),
        (
            Volumes { taken: true, ..Volumes::default() },
            no(
                "1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod",
                NONE,
            ),
        ),
        (Volumes { unbound: claims(), ..Volumes::default() }, Plan::Prepare { node: "n".into(), claims: claims() }),
        (
            Volumes { unbound: claims(), chosen: Some("m".into()), ..Volumes::default() },
            no("1 node(s) didn't find available persistent volumes to bind", NEVER),
        ),
    ] {
        let said = format!("{volumes:?}");
        assert_eq!(planned(&pod("p", json!({})), &volumes, &[node("n", json!({}))], &[]), want, "{said}");
    }
}

#[test]
fn of_several_nodes_the_better_one_is_chosen_and_all_are_counted() {
    let zone = |it: &str| json!({"/metadata/labels/zone": it});
    let (a, b) = (node("a", zone("x")), node("b", zone("y")));
    let on = |name: &str, at: &str| {
        pod(name, json!({APP: "web", "/spec/nodeName": at, "/spec/containers/0/resources": requests("500m")}))
    };
    let prefer = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]}}]}});
    let bad = |key: &str| {
        node("bad", json!({"/metadata/labels/zone": "x", "/spec/taints": [{"key": key, "effect": "PreferNoSchedule"}]}))
    };
    let both = [a.clone(), b.clone()];
    let none = Volumes::default();
    let go = |it: &str| Plan::Bind(it.to_owned());
    // Where there is more room; where it would rather be; away from what is tainted; spread.
    assert_eq!(planned(&pod("p", json!({})), &none, &both, &[on("1", "a")]), go("b"));
    assert_eq!(planned(&pod("p", json!({AFFINITY: prefer})), &none, &both, &[on("1", "a")]), go("a"));
    assert_eq!(planned(&pod("p", json!({})), &none, &[a, bad("k")], &[on("1", "a")]), go("a"));
    let constrained = json!({APP: "web", "/spec/topologySpreadConstraints": spread("zone")});
    assert_eq!(planned(&pod("p", constrained), &none, &both, &[on("1", "b")]), go("a"));
    let said = planned(
        &pod(
            "p",
            json!({"/spec/nodeSelector": {"zone": "x"}, "/spec/containers/0/resources": requests("2"), "/spec/preemptionPolicy": "Never"}),
        ),
        &none,
        &both,
        &[on("1", "a")],
    );
    let why = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector.";
    let then = "no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.";
    assert_eq!(said, Plan::No(format!("{why} {then}")));
    let nowhere = planned(&pod("p", json!({})), &none, &[], &[]);
    assert_eq!(nowhere, Plan::No("no nodes available to schedule pods".into()));
}

#[test]
fn a_pod_needs_what_it_needs_at_its_fullest() {
    let containers = |all: &[(&str, bool)]| -> Value {
        let one = |(cpu, stays): &(&str, bool)| json!({"name": "c", "resources": requests(cpu), "restartPolicy": stays.then_some("Always")});
        all.iter().map(one).collect()
    };
    for (first, then, whole, overhead, want) in [
        (vec![], vec![("1", false), ("500m", false)], None, None, "1500m"),
        (vec![("3", false), ("2", false)], vec![("1", false)], None, None, "3"),
        (vec![("1", true)], vec![("1", false)], None, None, "2"),
        // The sidecar before counts for it, the one after does not.
        (vec![("1", true), ("3", false), ("1", true)], vec![("1", false)], None, None, "4"),
        (vec![], vec![("1", false)], Some("5"), Some("100m"), "5100m"),
    ] {
        let mut it = json!({"/spec/initContainers": containers(&first), "/spec/containers": containers(&then)});
        if let Some(whole) = whole {
            it["/spec/resources"] = requests(whole);
        }
        if let Some(overhead) = overhead {
            it["/spec/overhead"] = json!({"cpu": overhead});
        }
        let said = it.to_string();
        assert_eq!(Info::new(pod("p", it)).requests["cpu"].to_string(), want, "{said}");
    }
}

#[test]
fn what_is_on_a_node_is_counted_once_and_given_back() {
    let it = pod("p", json!({"/spec/nodeName": "n", "/spec/containers/0/resources": requests("2")}));
    let other = pod("q", json!({"/spec/containers/0/resources": requests("1")}));
    let mut view = view(&[node("n", json!({}))], &[]);
    let info = |it: &Arc<Pod>| Arc::new(Info::new(it.clone()));
    view.assume(&it.key(), "n", info(&it));
    assert!(!view.set_pod(&it.key(), &it), "it was expected");
    assert!(!view.set_pod(&it.key(), &it), "nothing changed");
    assert!(matches!(plan(&info(&other), &Volumes::default(), &view, &[]), Plan::No(_)));
    view.forget(&it.key());
    assert!(matches!(plan(&info(&other), &Volumes::default(), &view, &[]), Plan::No(_)), "it is there, no guess");
    assert!(view.remove_pod(&it.key()));
    assert_eq!(plan(&info(&other), &Volumes::default(), &view, &[]), Plan::Bind("n".into()));
    // A node that comes back has what was on it all the time.
    view.set_pod(&it.key(), &it);
    view.remove_node("n");
    assert_eq!(
        plan(&info(&other), &Volumes::default(), &view, &[]),
        Plan::No("no nodes available to schedule pods".into())
    );
    view.set_node(node("n", json!({})));
    assert!(matches!(plan(&info(&other), &Volumes::default(), &view, &[]), Plan::No(_)));
}

#[test]
fn less_important_pods_make_room_as_few_of_them_as_can_be() {
    let budget: k8s_openapi::api::policy::v1::PodDisruptionBudget = serde_json::from_value(json!({
        "metadata": {"name": "b", "namespace": "default"}, "spec": {"selector": {"matchLabels": {"app": "web"}}},
        "status": {"currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": 0, "expectedPods": 1}}))
    .unwrap();
    let budget = Arc::new(budget);
    // Name, node, priority, processors, minute of its start.
    let there = |name: &str, at: &str, priority: i32, cpu: &str, minute: u32| {
        let app = if name.starts_with("web") { "web" } else { "other" };
        let since = format!("2026-01-01T00:{minute:02}:00Z");
        pod(
            name,
            json!({APP: app, "/spec/nodeName": at, "/spec/priority": priority, "/status/startTime": since,
                "/spec/containers/0/resources": requests(cpu)}),
        )
    };
    let wants = |cpu: &str| pod("p", json!({"/spec/priority": 10, "/spec/containers/0/resources": requests(cpu)}));
    let [a, b] = ["a", "b"].map(|it| node(it, json!({})));
    let out = |node: &str, victims: &[&str]| {
        let victims = victims.iter().map(|it| pod(it, json!({})).key()).collect();
        let count = if node.is_empty() { 1 } else { 2 };
        let why = format!("0/{count} nodes are available: {count} Insufficient cpu.");
        Plan::Preempt { node: node.to_owned(), victims, why }
    };
    let one = |victims: &[&str]| match out("", victims) {
        Plan::Preempt { victims, why, .. } => Plan::Preempt { node: "a".into(), victims, why },
        other => other,
    };
    let no = |then: &str| {
        let why = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption:";
        Plan::No(format!("{why} 0/1 nodes are available: 1 {then}."))
    };
    let both = [a.clone(), b];
    let single = [a];
    for (what, it, nodes, pods, want) in [
        (
            "the younger of two",
            wants("1"),
            &single[..],
            vec![there("old", "a", 0, "1", 1), there("young", "a", 0, "1", 2)],
            one(&["young"]),
        ),
        (
            "the less important, though it is older",
            wants("1"),
            &single[..],
            vec![there("old", "a", 0, "1", 1), there("young", "a", 5, "1", 2)],
            one(&["old"]),
        ),
        (
            "what a budget protects stays, though it is less important",
            wants("1"),
            &single[..],
            vec![there("web", "a", 0, "1", 1), there("other", "a", 5, "1", 2)],
            one(&["other"]),
        ),
        (
            "a budget is no wall",
            wants("2"),
            &single[..],
            vec![there("web", "a", 0, "1", 1), there("other", "a", 5, "1", 2)],
            one(&["web", "other"]),
        ),
        (
            "not who is as important",
            wants("1"),
            &single[..],
            vec![there("x", "a", 10, "1", 1), there("y", "a", 10, "1", 1)],
            no("No preemption victims found for incoming pod"),
        ),
        (
            "not if it does not help",
            wants("2"),
            &single[..],
            vec![there("x", "a", 10, "1", 1), there("y", "a", 0, "1", 1)],
            no("Insufficient cpu"),
        ),
        (
            "where the most important of them is less so",
            wants("2"),
            &both[..],
            vec![there("x", "a", 5, "1", 1), there("y", "b", 1, "1", 1), there("z", "b", 1, "1", 1)],
            out("b", &["y", "z"]),
        ),
        (
            "where no budget is violated",
            wants("2"),
            &both[..],
            vec![there("x", "a", 5, "1", 1), there("web", "b", 1, "1", 1)],
            out("a", &["x"]),
        ),
        (
            "where fewer go",
            wants("2"),
            &both[..],
            vec![there("x", "a", 1, "1", 1), there("y", "b", 1, "1", 1), there("z", "b", 1, "1", 1)],
            out("a", &["x"]),
        ),
        (
            "where they have not run for long",
            wants("2"),
            &both[..],
            vec![there("x", "a", 1, "1", 1), there("y", "b", 1, "1", 2)],
            out("b", &["y"]),
        ),
    ] {
        let found = plan(&Info::new(it), &Volumes::default(), &view(nodes, &pods), std::slice::from_ref(&budget));
        assert_eq!(found, want, "{what}");
    }
}

#[test]
fn room_that_is_made_for_a_pod_is_taken_by_nobody_who_is_less_important() {
    let asks = |name: &str, priority: i32| {
        let it = json!({"/spec/priority": priority, "/spec/containers/0/resources": requests("2"),
            "/status/nominatedNodeName": "n"});
        pod(name, it)
    };
    let victim = |ends: bool| {
        let mut it = json!({"/spec/nodeName": "n", "/spec/containers/0/resources": requests("2")});
        if ends {
            it["/metadata/deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            it["/status/conditions"] =
                json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
        }
        pod("victim", it)
    };
    let (first, lesser, greater) = (asks("first", 5), asks("lesser", 1), asks("greater", 9));
    let planned = |it: &Arc<Pod>, view: &View| plan(&Info::new(it.clone()), &Volumes::default(), view, &[]);
    let mut it = view(&[node("n", json!({}))], &[victim(true)]);
    it.nominate(&first.key(), "n", Arc::new(Info::new(first.clone())));
    assert_eq!(planned(&first, &it), Plan::Wait, "it is on its way");
    it.set_pod(&victim(false).key(), &victim(false));
    assert!(matches!(planned(&first, &it), Plan::Preempt { .. }), "nobody goes");
    it.remove_pod(&victim(true).key());
    assert!(matches!(planned(&lesser, &it), Plan::No(_)), "it is kept for another one");
    assert_eq!(planned(&first, &it), Plan::Bind("n".into()));
    assert_eq!(planned(&greater, &it), Plan::Bind("n".into()));
    assert_eq!(it.lesser_nominated("n", &Info::new(greater)).len(), 1);
    assert!(it.dismiss(&first.key()));
    assert_eq!(planned(&lesser, &it), Plan::Bind("n".into()));
}

#[tokio::test]
async fn one_that_goes_already_is_waited_for_and_nothing_is_said_over_and_over() {
    let house = house().await;
    let pods = house.of::<Pod>("default");
    let wants = |name: &str, class: Option<&str>| {
        json!({"metadata": {"name": name}, "spec": {
            "priorityClassName": class, "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "c", "image": "i", "resources": requests("2")}]}})
    };
    let placed = |it: Option<&Pod>| it.is_some_and(|it| it.spec.as_ref().unwrap().node_name.is_some());
    create(
        &house.all::<Node>(),
        json!({"metadata": {"name": "n"}, "status": {
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}]}}),
    )
    .await;
    create(&pods, wants("first", None)).await;
    until(&pods, "first", placed).await;
    pods.delete("first", &DeleteParams::default()).await.unwrap();
    create(&pods, wants("second", Some("system-node-critical"))).await;
    let told = |it: Option<&Pod>| {
        let conditions = it.and_then(|it| it.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|it| it.reason.as_deref() == Some(super::preempt::REASON))
    };
    until(&pods, "first", told).await;
    pods.delete("first", &DeleteParams::default().grace_period(0)).await.unwrap();
    until(&pods, "second", placed).await;
    let said =
        |it: &Event| it.reason.as_deref() == Some("Scheduled") && it.involved_object.name.as_deref() == Some("second");
    let events = all(&house.of::<Event>("default"), |it| it.iter().any(said)).await;
    let failed = events.iter().filter(|it| it.reason.as_deref() == Some("FailedScheduling"));
    let times: i32 = failed.map(|it| it.series.as_ref().and_then(|it| it.count).unwrap_or(1)).sum();
    assert!((1..=2).contains(&times), "{times}");
}
