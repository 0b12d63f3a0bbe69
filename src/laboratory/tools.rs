//! Putting laboratories on and taking them off, at all workers, while the device runs.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::chain::Labs;
use super::control::ControlLab;
use super::seam::Lab;
use crate::namespace::Cntlid;

/// Whose laboratory it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The controller.
    pub cntlid: Cntlid,
    /// Which of its workers.
    pub worker: usize,
}

/// Makes a worker's laboratory.
pub type LabFactory = Arc<dyn Fn(Place) -> Box<dyn Lab> + Send + Sync>;

/// What laboratories are made by, one for each worker.
#[derive(Clone)]
pub struct Tool {
    /// One of each name is on at a time.
    pub name: &'static str,
    /// Called on the thread that puts it on.
    pub make: LabFactory,
    /// What the control threads ask, if it has anything to say of admin commands and registers.
    pub control: Option<Arc<dyn ControlLab>>,
}

impl Tool {
    /// For workers alone.
    pub fn for_workers(name: &'static str, make: LabFactory) -> Self {
        Self { name, make, control: None }
    }
}

/// A change of a worker's laboratories, on its way to the worker.
pub struct Change {
    name: &'static str,
    /// `None`: it is taken off.
    lab: Option<Box<dyn Lab>>,
    /// Dropped when it is done.
    _done: Option<Sender<()>>,
}

impl Change {
    /// Makes it. `labs` is `None` again when none is left.
    pub fn apply(self, labs: &mut Option<Labs>) {
        match self.lab {
            Some(lab) => labs.get_or_insert_default().put(self.name, lab),
            None => {
                let left = labs.take().map(|mut labs| {
                    labs.take(self.name);
                    labs
                });
                *labs = left.filter(|labs| !labs.is_empty());
            }
        }
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change").field("name", &self.name).field("on", &self.lab.is_some()).finish()
    }
}

/// How a change reaches a worker; false when that is no more.
pub type Station = Box<dyn Fn(Change) -> bool + Send>;

/// The tools that are on, at every worker of every controller. Any thread may put one on or take one off, but
/// no worker's, for that would wait for itself.
#[derive(Default)]
pub struct Laboratory {
    tools: Mutex<Tools>,
    /// What of them the control threads ask.
    control: ArcSwapOption<Vec<Arc<dyn ControlLab>>>,
}

#[derive(Default)]
struct Tools {
    on: Vec<Tool>,
    stations: Vec<(Place, Station)>,
    /// Have the control threads look.
    wakes: Vec<Arc<dyn Fn() + Send + Sync>>,
}

impl Laboratory {
    /// One with these tools on.
    pub fn with(tools: Vec<Tool>) -> Arc<Self> {
        let laboratory = Self::default();
        laboratory.locked(|all| all.on = tools);
        Arc::new(laboratory)
    }

    /// A worker has started, and has no laboratories. Those that it is to have are sent to it, now and
    /// whenever that changes.
    pub fn join(&self, place: Place, station: Station) {
        self.locked(|tools| {
            for tool in &tools.on {
                station(Change { name: tool.name, lab: Some((tool.make)(place)), _done: None });
            }
            tools.stations.push((place, station));
        });
    }

    /// A controller has started: `wake` has its control thread look at [`Self::control`], and at what is held
    /// there, whenever that may have changed.
    pub fn watch(&self, wake: Arc<dyn Fn() + Send + Sync>) {
        self.locked(|tools| tools.wakes.push(wake));
    }

    /// Puts `tool` on, in the place of the one of its name. Returns when all workers have it, so that each
    /// command that is rung for from now on meets it; false when one has not after `patience`, which it may
    /// have later.
    pub fn put(&self, tool: Tool, patience: Duration) -> bool {
        let done = self.locked(|tools| {
            tools.on.retain(|on| on.name != tool.name);
            let done = tools.send(tool.name, |place| Some((tool.make)(place)));
            tools.on.push(tool);
            done
        });
        wait(&done, patience)
    }

    /// Takes the tool of this name off, if there is one; else as [`Self::put`].
    pub fn take(&self, name: &'static str, patience: Duration) -> bool {
        let done = self.locked(|tools| {
            tools.on.retain(|on| on.name != name);
            tools.send(name, |_| None)
        });
        wait(&done, patience)
    }

    /// Has every worker and every control thread look at what it holds; else as [`Self::put`].
    pub fn wake(&self, patience: Duration) -> bool {
        // A change of nothing.
        let done = self.locked(|tools| tools.send("", |_| None));
        wait(&done, patience)
    }

    /// The names of those that are on.
    pub fn names(&self) -> Vec<&'static str> {
        self.locked(|tools| tools.on.iter().map(|tool| tool.name).collect())
    }

    /// What the control threads ask, if there is anything.
    pub fn control(&self) -> Option<Arc<Vec<Arc<dyn ControlLab>>>> {
        self.control.load_full()
    }

    /// Whatever is on afterwards, the control threads ask that.
    fn locked<T>(&self, with: impl FnOnce(&mut Tools) -> T) -> T {
        let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        let result = with(&mut tools);
        let control: Vec<_> = tools.on.iter().filter_map(|tool| tool.control.clone()).collect();
        self.control.store((!control.is_empty()).then(|| Arc::new(control)));
        tools.wakes.iter().for_each(|wake| wake());
        result
    }
}

impl Tools {
    /// What comes back ends when all have done it.
    fn send(&mut self, name: &'static str, make: impl Fn(Place) -> Option<Box<dyn Lab>>) -> Receiver<()> {
        let (done, all_done) = channel();
        self.stations.retain(|(place, station)| {
            station(Change { name, lab: make(*place), _done: Some(done.clone()) })
        });
        all_done
    }
}

fn wait(done: &Receiver<()>, patience: Duration) -> bool {
    matches!(done.recv_timeout(patience), Err(RecvTimeoutError::Disconnected))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Lab for Nothing {}

    fn tool(name: &'static str) -> Tool {
        Tool::for_workers(name, Arc::new(|_| Box::new(Nothing)))
    }

    /// A worker that does as it is told when [`Self::work`] is called.
    struct Worker(Receiver<Change>, Option<Labs>);

    impl Worker {
        fn join(laboratory: &Laboratory, worker: usize) -> Self {
            let (sender, changes) = channel();
            let place = Place { cntlid: Cntlid::default(), worker };
            laboratory.join(place, Box::new(move |change| sender.send(change).is_ok()));
            Self(changes, None)
        }

        fn work(&mut self) {
            self.0.try_iter().for_each(|change| change.apply(&mut self.1));
        }
    }

    #[test]
    fn who_comes_later_has_what_is_on() {
        let laboratory = Laboratory::with(vec![tool("a")]);
        let mut first = Worker::join(&laboratory, 0);
        first.work();
        assert!(first.1.is_some());
        assert!(!laboratory.put(tool("b"), Duration::ZERO), "it has not looked");
        first.work();
        assert!(!laboratory.take("a", Duration::ZERO));
        assert_eq!(laboratory.names(), ["b"]);
        let mut second = Worker::join(&laboratory, 1);
        for worker in [&mut first, &mut second] {
            worker.work();
            assert!(worker.1.is_some());
        }
        laboratory.wake(Duration::ZERO);
        for worker in [&mut first, &mut second] {
            worker.work();
            assert!(worker.1.is_some(), "nothing has changed");
        }
        laboratory.take("b", Duration::ZERO);
        for worker in [&mut first, &mut second] {
            worker.work();
            assert!(worker.1.is_none(), "without any, the loops are what they were");
        }
    }

    #[test]
    fn it_waits_for_workers_that_live_and_for_no_other() {
        let laboratory = Laboratory::with(Vec::new());
        assert!(laboratory.put(tool("a"), Duration::ZERO), "there is nobody");
        drop(Worker::join(&laboratory, 0));
        let mut lives = Worker::join(&laboratory, 1);
        std::thread::scope(|scope| {
            let put = scope.spawn(|| laboratory.put(tool("a"), Duration::from_secs(60)));
            while !put.is_finished() {
                lives.work();
            }
            assert!(put.join().unwrap());
        });
    }
}
