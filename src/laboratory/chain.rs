//! Several laboratories of one worker, as one.

use super::script::Post;
use super::seam::{Accepted, CommandId, Fate, Fetched, Lab};
use crate::copy::{CopyPlan, Reject, SourceRange, Written};
use crate::spec::Outcome;

/// Laboratories in the order in which they were put on. All of them are told all; of what they answer, the
/// first answer counts that changes anything.
#[derive(Default)]
pub struct Labs(Vec<NamedLab>);

struct NamedLab {
    name: &'static str,
    lab: Box<dyn Lab>,
}

impl Labs {
    /// Puts `lab` on, in the place of the one of this name if there is one.
    pub fn put(&mut self, name: &'static str, lab: Box<dyn Lab>) {
        match self.0.iter_mut().find(|named| named.name == name) {
            Some(named) => named.lab = lab,
            None => self.0.push(NamedLab { name, lab }),
        }
    }

    /// Takes the one of this name off.
    pub fn take(&mut self, name: &str) {
        self.0.retain(|named| named.name != name);
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Box<dyn Lab>> {
        self.0.iter_mut().map(|named| &mut named.lab)
    }
}

impl Lab for Labs {
    fn fetched(&mut self, id: CommandId, command: Fetched<'_>) -> Fate {
        self.each().map(|lab| lab.fetched(id, command)).fold(Fate::Pass, Fate::or)
    }

    fn listed(&mut self, id: CommandId, ranges: &[SourceRange]) {
        self.each().for_each(|lab| lab.listed(id, ranges));
    }

    fn planned(&mut self, id: CommandId, plan: &CopyPlan) -> Fate {
        self.each().map(|lab| lab.planned(id, plan)).fold(Fate::Pass, Fate::or)
    }

    fn accepted(&mut self, id: CommandId, command: Accepted<'_>) {
        self.each().for_each(|lab| lab.accepted(id, command));
    }

    fn refused(&mut self, id: CommandId, why: &Reject) {
        self.each().for_each(|lab| lab.refused(id, why));
    }

    fn moved(&mut self, id: CommandId, part: Written) {
        self.each().for_each(|lab| lab.moved(id, part));
    }

    fn ended(&mut self, id: CommandId, outcome: &mut Outcome) -> Post {
        let posts = self.each().map(|lab| lab.ended(id, outcome));
        posts.fold(Post::Once, Post::or)
    }

    fn over(&mut self, id: CommandId, outcome: &Outcome, post: Option<Post>) {
        self.each().for_each(|lab| lab.over(id, outcome, post));
    }

    fn failed(&mut self) {
        self.each().for_each(|lab| lab.failed());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::spec::{Sqe, Status};

    const ID: CommandId = CommandId { serial: 1, sqid: 1, cid: 7 };

    /// Answers as it was made to, and notes who was asked.
    struct Scripted {
        name: char,
        fate: Option<Status>,
        post: Post,
        asked: Arc<Mutex<String>>,
    }

    impl Lab for Scripted {
        fn fetched(&mut self, _: CommandId, _: Fetched<'_>) -> Fate {
            self.asked.lock().unwrap().push(self.name);
            self.fate.map_or(Fate::Pass, Fate::End)
        }

        fn ended(&mut self, _: CommandId, outcome: &mut Outcome) -> Post {
            outcome.dw0 = outcome.dw0 * 10 + 1;
            self.asked.lock().unwrap().push(self.name);
            self.post
        }
    }

    #[test]
    fn all_are_asked_and_the_first_that_wants_something_has_it() {
        let asked = Arc::new(Mutex::new(String::new()));
        let mut labs = Labs::default();
        let scripted = |name, fate, post| Box::new(Scripted { name, fate, post, asked: asked.clone() });
        let sqe = Sqe::default();
        let fate = |labs: &mut Labs| labs.fetched(ID, Fetched { sqe: &sqe, ns: None, depth: 1 });
        labs.put("a", scripted('a', None, Post::Once));
        labs.put("b", scripted('b', Some(Status::WRITE_FAULT), Post::Never));
        labs.put("c", scripted('c', Some(Status::INTERNAL_ERROR), Post::Twice));
        let mut outcome = Outcome::of(Status::SUCCESS);
        assert!(matches!(fate(&mut labs), Fate::End(Status::WRITE_FAULT)));
        assert_eq!(labs.ended(ID, &mut outcome), Post::Never);
        assert_eq!((asked.lock().unwrap().as_str(), outcome.dw0), ("abcabc", 111));
        labs.take("b");
        assert_eq!(labs.ended(ID, &mut outcome), Post::Twice);
        labs.put("c", scripted('d', None, Post::Once));
        assert!(matches!(fate(&mut labs), Fate::Pass));
        assert_eq!(asked.lock().unwrap().as_str(), "abcabcacad", "another in its place");
        labs.take("a");
        labs.take("c");
        labs.take("never there");
        assert!(labs.is_empty() && matches!(fate(&mut labs), Fate::Pass));
    }
}
