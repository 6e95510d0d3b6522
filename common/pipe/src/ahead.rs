//! One step of the work ahead of the next: an iterator that runs in a thread of its own.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread::{JoinHandle, spawn},
};

/// The items of an iterator, in their order, made while earlier ones are still in use.
pub enum Ahead<T> {
    Here(Box<dyn Iterator<Item = T> + Send>),
    There { items: Receiver<T>, thread: Option<JoinHandle<()>> },
}

impl<T: Send + 'static> Ahead<T> {
    /// At most `waiting` items are made before they are asked for; with 0 there is no thread.
    pub fn of(items: impl Iterator<Item = T> + Send + 'static, waiting: usize) -> Self {
        if waiting == 0 {
            return Ahead::Here(Box::new(items));
        }
        let (to, from) = sync_channel(waiting);
        // Whoever stops asking stops the work.
        let thread = spawn(move || items.map(|item| to.send(item)).take_while(Result::is_ok).for_each(drop));
        Ahead::There { items: from, thread: Some(thread) }
    }
}

impl<T> Iterator for Ahead<T> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        match self {
            Ahead::Here(items) => items.next(),
            Ahead::There { items, thread } => items.recv().ok().or_else(|| {
                // The end, unless the thread broke down: half of a table must not pass for a whole one.
                if let Some(Err(panic)) = thread.take().map(JoinHandle::join) {
                    std::panic::resume_unwind(panic);
                }
                None
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_keep_their_order() {
        for waiting in [0, 1, 4] {
            assert!(Ahead::of(0..1000, waiting).eq(0..1000));
            assert!(Ahead::of(0.., waiting).take(3).eq(0..3));
        }
    }

    #[test]
    #[should_panic(expected = "broke down")]
    fn a_panic_is_no_end() {
        Ahead::of((0..5).map(|i| if i < 3 { i } else { panic!("broke down") }), 1).for_each(drop);
    }
}
