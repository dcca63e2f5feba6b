use super::*;
use proptest::prelude::*;

fn item(run: &str, tenant: &str, session: &str, created: i64) -> Item {
    Item { run: run.into(), tenant: ("ns".into(), tenant.into()), session: session.into(), created }
}

/// Starts whatever is due, in order.
fn due(queue: &mut Queue) -> Vec<String> {
    let mut runs = Vec::new();
    while let Some(run) = queue.next().cloned() {
        queue.start(&run);
        runs.push(run.to_string());
    }
    runs
}

/// Each line: what is queued (run, tenant, session, created; limit by tenant), and what is due in which order.
#[test]
fn what_is_due_and_in_which_order() {
    type Line<'a> = (&'a str, &'a [(&'a str, &'a str, &'a str, i64)], u32, &'a [&'a str]);
    let table: &[Line<'_>] = &[
        ("nothing", &[], 5, &[]),
        ("oldest first", &[("b", "t", "", 2), ("a", "t", "", 1), ("c", "t", "", 3)], 5, &["a", "b", "c"]),
        ("the id decides within a moment", &[("b", "t", "", 1), ("a", "t", "", 1)], 5, &["a", "b"]),
        ("up to the limit", &[("a", "t", "", 1), ("b", "t", "", 2), ("c", "t", "", 3)], 2, &["a", "b"]),
        ("a limit of none", &[("a", "t", "", 1)], 0, &[]),
        ("one of a session", &[("b", "t", "s", 2), ("a", "t", "s", 1), ("c", "t", "", 3)], 5, &["a", "c"]),
        ("a session is its tenant's own", &[("a", "t", "s", 1), ("b", "u", "s", 1)], 5, &["a", "b"]),
        (
            "tenants in turn",
            &[("a", "t", "", 1), ("b", "t", "", 2), ("c", "t", "", 3), ("d", "u", "", 9), ("e", "v", "", 8)],
            5,
            &["a", "d", "e", "b", "c"],
        ),
    ];
    for (what, items, limit, expected) in table {
        let mut queue = Queue::default();
        for (run, tenant, session, created) in *items {
            queue.submit(item(run, tenant, session, *created), *limit);
        }
        assert_eq!(due(&mut queue), *expected, "{what}");
    }
}

#[test]
fn a_session_goes_on_when_its_run_ends_and_a_released_run_comes_first_again() {
    let mut queue = Queue::default();
    for (run, created) in [("a", 1), ("b", 2), ("c", 3)] {
        queue.submit(item(run, "t", "s", created), 5);
    }
    assert_eq!(due(&mut queue), ["a"]);
    queue.requeue(&"a".into());
    assert_eq!(due(&mut queue), ["a"]);
    queue.remove(&"a".into());
    assert_eq!(due(&mut queue), ["b"]);
    queue.remove(&"c".into());
    queue.remove(&"b".into());
    assert_eq!(due(&mut queue), [""; 0]);
    assert!(queue.tenants.is_empty() && queue.ring.is_empty() && queue.runs.is_empty());
}

#[derive(Clone, Debug)]
enum Op {
    Submit { tenant: u8, session: u8, created: i64, limit: u32 },
    Limit { tenant: u8, limit: u32 },
    Start,
    Requeue(usize),
    Remove(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u8..4, 0u8..4, 0i64..6, 0u32..4)
            .prop_map(|(tenant, session, created, limit)| Op::Submit { tenant, session, created, limit }),
        1 => (0u8..4, 0u32..4).prop_map(|(tenant, limit)| Op::Limit { tenant, limit }),
        6 => Just(Op::Start),
        1 => any::<usize>().prop_map(Op::Requeue),
        3 => any::<usize>().prop_map(Op::Remove),
    ]
}

/// The same by looking at everything.
#[derive(Default)]
struct Naive {
    runs: Vec<(Item, bool)>,
    limits: HashMap<Tenant, u32>,
}

impl Naive {
    fn eligible(&self, tenant: &Tenant) -> Option<Place> {
        let of = |running| self.runs.iter().filter(move |(it, runs)| it.tenant == *tenant && *runs == running);
        if of(true).count() >= self.limits[tenant] as usize {
            return None;
        }
        let free = |it: &Item| {
            it.session.is_empty()
                || (!of(true).any(|(other, _)| other.session == it.session)
                    && !of(false).any(|(other, _)| {
                        other.session == it.session && (other.created, &other.run) < (it.created, &it.run)
                    }))
        };
        of(false).filter(|(it, _)| free(it)).map(|(it, _)| (it.created, it.run.clone())).min()
    }

    fn ready(&self) -> BTreeSet<Tenant> {
        let tenants: BTreeSet<_> = self.runs.iter().map(|(it, _)| it.tenant.clone()).collect();
        tenants.into_iter().filter(|tenant| self.eligible(tenant).is_some()).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn limits_sessions_and_turns_hold_whatever_happens(ops in proptest::collection::vec(op(), 1..120)) {
        let (mut queue, mut naive) = (Queue::default(), Naive::default());
        // Who was served while a tenant stood ready.
        let mut served: HashMap<Tenant, Vec<Tenant>> = HashMap::new();
        for (number, op) in ops.into_iter().enumerate() {
            match op {
                Op::Submit { tenant, session, created, limit } => {
                    let session = if session == 0 { String::new() } else { session.to_string() };
                    let it = item(&format!("r{number:03}"), &tenant.to_string(), &session, created);
                    naive.limits.insert(it.tenant.clone(), limit);
                    queue.submit(it.clone(), limit);
                    naive.runs.push((it, false));
                }
                Op::Limit { tenant, limit } => {
                    let tenant: Tenant = ("ns".into(), tenant.to_string().into());
                    naive.limits.insert(tenant.clone(), limit);
                    queue.set_limit(&tenant, limit);
                }
                Op::Start => match queue.next().cloned() {
                    None => prop_assert!(naive.ready().is_empty()),
                    Some(run) => {
                        let at = naive.runs.iter().position(|(it, _)| it.run == run).unwrap();
                        let tenant = naive.runs[at].0.tenant.clone();
                        let due = naive.eligible(&tenant);
                        prop_assert_eq!(due.map(|(_, run)| run), Some(run.clone()), "not the oldest that may run");
                        for (waiting, others) in &mut served {
                            if *waiting != tenant {
                                prop_assert!(!others.contains(&tenant), "{tenant:?} twice while {waiting:?} waited");
                                others.push(tenant.clone());
                            }
                        }
                        served.remove(&tenant);
                        queue.start(&run);
                        naive.runs[at].1 = true;
                    }
                },
                Op::Requeue(which) | Op::Remove(which) if naive.runs.is_empty() => _ = which,
                Op::Requeue(which) => {
                    let at = which % naive.runs.len();
                    queue.requeue(&naive.runs[at].0.run.clone());
                    naive.runs[at].1 = false;
                }
                Op::Remove(which) => {
                    let (it, _) = naive.runs.remove(which % naive.runs.len());
                    queue.remove(&it.run);
                }
            }
            let ready = naive.ready();
            served.retain(|tenant, _| ready.contains(tenant));
            for tenant in ready {
                served.entry(tenant).or_default();
            }
        }
    }
}
