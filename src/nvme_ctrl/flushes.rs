//! Flushes of all namespaces that are not commands: whom each one answers.
//!
//! A flush answers those who asked before it began; who asks while it is under way waits for the next one,
//! which all who wait share. So there is one under way and one to come at most, however often a host asks.

use std::sync::mpsc::Sender;

use super::pending::Pending;

/// Who asks for a flush.
#[derive(Debug)]
pub enum Asker {
    /// A shutdown by CC.SHN. A later one takes its place.
    Shutdown,
    /// The end of the process's service, likewise.
    Farewell,
    /// An admin command.
    Admin(Pending),
    /// Somebody beside the host, who wants to know whether it succeeded. A later one takes its place too.
    Outside(Sender<bool>),
}

/// See the module docs.
#[derive(Debug, Default)]
pub struct Flushes {
    /// Whom the flush under way answers.
    now: Option<Vec<Asker>>,
    /// Whom the next one does.
    next: Vec<Asker>,
}

impl Flushes {
    /// Takes a request in. True: the caller begins a flush.
    #[must_use]
    pub fn ask(&mut self, asker: Asker) -> bool {
        if !matches!(asker, Asker::Admin(_)) {
            let kind = std::mem::discriminant(&asker);
            self.retain(|earlier| std::mem::discriminant(earlier) != kind);
        }
        self.next.push(asker);
        self.begin()
    }

    /// The flush under way is over: whom it answers, and whether the caller begins the next one.
    #[must_use]
    pub fn ended(&mut self) -> (Vec<Asker>, bool) {
        let answered = self.now.take().unwrap_or_default();
        (answered, self.begin())
    }

    /// The admin queue is gone, and what was asked for its commands.
    pub fn forget_admin(&mut self) {
        self.retain(|asker| !matches!(asker, Asker::Admin(_)));
    }

    fn begin(&mut self) -> bool {
        let begins = self.now.is_none() && !self.next.is_empty();
        if begins {
            self.now = Some(std::mem::take(&mut self.next));
        }
        begins
    }

    fn retain(&mut self, keep: impl Fn(&Asker) -> bool) {
        self.now.iter_mut().for_each(|askers| askers.retain(&keep));
        self.next.retain(&keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme_ctrl::error_log::Failed;
    use crate::nvme_ctrl::pending::Then;

    fn admin(cid: u16) -> Asker {
        let command = Failed { sqid: 0, cid, opc: 9, nsid: 0, slba: 0 };
        Asker::Admin(Pending { command, then: Then::CacheFlushed })
    }

    fn names(askers: &[Asker]) -> Vec<String> {
        let name = |asker: &Asker| match asker {
            Asker::Admin(pending) => pending.command.cid.to_string(),
            other => format!("{other:?}"),
        };
        askers.iter().map(name).collect()
    }

    #[test]
    fn a_flush_answers_who_asked_before_it_began() {
        let mut flushes = Flushes::default();
        assert!(flushes.ask(admin(1)));
        assert!(!flushes.ask(admin(2)) && !flushes.ask(Asker::Farewell));
        let (answered, again) = flushes.ended();
        assert_eq!((names(&answered), again), (vec!["1".into()], true));
        let (answered, again) = flushes.ended();
        assert_eq!((names(&answered), again), (vec!["2".into(), "Farewell".into()], false));
        assert!(flushes.ask(admin(3)));
    }

    #[test]
    fn a_later_shutdown_takes_the_place_of_an_earlier_one() {
        let mut flushes = Flushes::default();
        assert!(flushes.ask(Asker::Shutdown));
        for _ in 0..100 {
            assert!(!flushes.ask(Asker::Shutdown));
        }
        assert_eq!(flushes.next.len(), 1);
        let (answered, again) = flushes.ended();
        assert!(answered.is_empty() && again, "the first flush is not the last shutdown's");
        assert_eq!(names(&flushes.ended().0), ["Shutdown"]);
    }

    #[test]
    fn what_an_admin_queue_asked_for_goes_with_it() {
        let mut flushes = Flushes::default();
        assert!(flushes.ask(admin(1)));
        assert!(!flushes.ask(admin(2)));
        flushes.forget_admin();
        assert!(flushes.ended().0.is_empty());
        assert!(flushes.ask(admin(3)), "nobody waited for the next one");
    }
}
