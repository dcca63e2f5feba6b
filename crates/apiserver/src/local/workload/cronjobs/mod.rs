//! CronJobs: a Job is made whenever the time of the schedule has come. Times decide, not ticks: whatever the clock does, and
//! however long nobody looked.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{controller, is_controlled_by, is_terminating};
use crate::local::drive::drive;
use crate::local::events::Recorder;
use crate::local::reader::{Kind, Reader, key};
use crate::local::{World, call};
use crate::object::status::Problem;
use crate::store::{Event, Key};
use crate::verbs::{DeleteOptions, Propagation, delete};
use plan::{Start, made, plan};

struct CronJobs {
    world: Arc<World>,
    cron_jobs: Reader<CronJob>,
    jobs: Reader<Job>,
    by: Recorder,
}

pub(in crate::local) async fn follow(world: Arc<World>) {
    let core = &world.core.clone();
    let it = &CronJobs {
        cron_jobs: Reader::new(core),
        jobs: Reader::new(core),
        by: world.events.of(core, "cronjob-controller"),
        world,
    };
    let first = || it.cron_jobs.list(None).iter().map(|it| it.key()).collect();
    drive(core, &[("batch", "cronjobs"), ("batch", "jobs")], first, |change| it.wakes(change), |key| it.sync(key))
        .await;
}

impl CronJobs {
    fn wakes(&self, change: &Event) -> Vec<Key> {
        if *change.entry.key.resource == *"cronjobs" {
            return vec![change.entry.key.clone()];
        }
        let job = self.jobs.of(&change.entry);
        let by = job.as_ref().and_then(|it| controller(&**it)).filter(|it| it.kind == "CronJob");
        by.map(|by| key::<CronJob>(&change.entry.key.namespace, &by.name)).into_iter().collect()
    }

    async fn sync(&self, key: Key) -> Result<Option<Timestamp>, Problem> {
        let Some(it) = self.cron_jobs.get(&key.namespace, &key.name) else { return Ok(None) };
        let mut jobs = self.jobs.list(Some(&key.namespace));
        jobs.retain(|job| is_controlled_by(&**job, &*it));
        let exists = |name: &str| self.jobs.get(&key.namespace, name).is_some();
        let plan = plan(&it, &jobs, exists, self.world.core.clock.now());
        let mut status = plan.status;
        plan.events.iter().for_each(|event| self.by.remark(&*it, event));
        let mut wrong = None;
        for (name, uid) in &plan.delete {
            match self.delete(&it, &mut status, name, uid).await {
                Ok(()) => {}
                Err(problem) => wrong = wrong.or(Some(problem)),
            }
        }
        if let Some(start) = plan.start.filter(|_| wrong.is_none()) {
            match self.start(&it, &start, &mut status).await {
                Ok(()) => {}
                Err(problem) if is_terminating(&problem) => {}
                Err(problem) => wrong = Some(problem),
            }
        }
        status.active.take_if(|it| it.is_empty());
        if it.status.clone().unwrap_or_default() != status {
            self.world.set_status(&*it, &status).await?;
        }
        wrong.map_or(Ok(plan.again), Err)
    }

    async fn delete(&self, it: &CronJob, status: &mut CronJobStatus, name: &str, uid: &str) -> Result<(), Problem> {
        let Some(mut call) = call(&self.world.core, &key::<Job>(it.namespace(), name)) else { return Ok(()) };
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        match delete::delete(&mut call, &options).await {
            Ok(_) => {}
            Err(problem) if matches!(problem.code, 404 | 409) => {}
            Err(problem) => {
                self.by.warning(it, "FailedDelete", format!("Deleted job: {}", problem.message));
                return Err(problem);
            }
        }
        status.active.iter_mut().for_each(|all| all.retain(|it| it.uid.as_deref() != Some(uid)));
        self.by.normal(it, "SuccessfulDelete", format!("Deleted job {name}"));
        Ok(())
    }

    async fn start(&self, it: &CronJob, start: &Start, status: &mut CronJobStatus) -> Result<(), Problem> {
        let job = match self.world.create(&made(it, start)).await {
            Ok(job) => {
                self.by.normal(it, "SuccessfulCreate", format!("Created job {}", start.name));
                self.jobs.of(&job)
            }
            Err(problem) if problem.reason == "AlreadyExists" => {
                // Made before, and not written down: or somebody else's.
                self.jobs.get(it.namespace(), &start.name).filter(|job| is_controlled_by(&**job, it))
            }
            Err(problem) => {
                if !is_terminating(&problem) {
                    self.by.warning(it, "FailedCreate", format!("Error creating job: {}", problem.message));
                }
                return Err(problem);
            }
        };
        let Some(job) = job else { return Ok(()) };
        status.active.get_or_insert_default().push(ObjectReference {
            api_version: Some("batch/v1".to_owned()),
            kind: Some("Job".to_owned()),
            name: Some(start.name.clone()),
            namespace: Some(it.namespace().to_owned()),
            uid: Some(job.uid().to_owned()),
            resource_version: job.metadata.resource_version.clone(),
            field_path: None,
        });
        status.last_schedule_time = Some(Time(start.scheduled));
        Ok(())
    }
}
