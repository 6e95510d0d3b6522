//! Read-ahead: an iterator that runs on a thread of its own while its earlier items are in use.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::{mem, time::Duration};

use anyhow::{Context, Result, anyhow};

use crate::{panics::broken, stop};

/// The items of `I`, in order. An error or a panic on the other thread arrives here as an error: it is never taken for the
/// end of the items.
pub struct Ahead<I: Iterator> {
    state: State<I>,
    on_signal: OnSignal,
}

/// What a signal (see `stop`) does to whoever waits for the next item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSignal {
    /// It ends the waiting, as an error.
    Stop,
    Wait,
}

enum State<I: Iterator> {
    /// Without a thread: an item is made when it is asked for.
    Inline(I),
    Threaded {
        items: Receiver<I::Item>,
        thread: JoinHandle<I>,
    },
    /// The thread has ended. It gave the iterator back unless it panicked.
    Ended(Option<I>),
}

/// How often a waiting reader looks whether a signal has arrived.
const PATIENCE: Duration = Duration::from_millis(200);

impl<T: Send + 'static, I: Iterator<Item = Result<T>> + Send + 'static> Ahead<I> {
    /// Makes up to `ready` items before they are asked for; 0 starts no thread.
    pub fn new(mut items: I, ready: usize) -> Result<Self> {
        // The thread itself holds one of the items.
        let Some(waiting) = ready.checked_sub(1) else { return Ok(Self::of(State::Inline(items))) };
        let (send, receive) = sync_channel(waiting);
        let work = move || {
            for item in items.by_ref() {
                if send.send(item).is_err() {
                    break; // the rest is not wanted
                }
            }
            items
        };
        let thread = Builder::new().name("read-ahead".into()).spawn(work).context("cannot start a thread")?;
        Ok(Self::of(State::Threaded { items: receive, thread }))
    }

    fn of(state: State<I>) -> Self {
        Self { state, on_signal: OnSignal::Stop }
    }

    pub fn on_signal(self, on_signal: OnSignal) -> Self {
        Self { on_signal, ..self }
    }

    /// Stops reading ahead and gives the iterator back. It may be up to `ready` items further than what was taken from here.
    pub fn into_inner(self) -> Result<I> {
        match self.state {
            State::Inline(items) | State::Ended(Some(items)) => Ok(items),
            State::Ended(None) => Err(anyhow!("the thread that reads ahead has broken down")),
            State::Threaded { items, thread } => {
                drop(items); // the thread ends at its next item
                thread.join().map_err(broken)
            }
        }
    }
}

impl<T: Send + 'static, I: Iterator<Item = Result<T>> + Send + 'static> Iterator for Ahead<I> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        loop {
            let items = match &mut self.state {
                State::Inline(items) => return items.next(),
                State::Ended(_) => return None,
                State::Threaded { items, .. } => items,
            };
            match items.recv_timeout(PATIENCE) {
                Ok(item) => return Some(item),
                Err(RecvTimeoutError::Timeout) if self.on_signal == OnSignal::Wait => {}
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(stopped) = stop::check() {
                        return Some(Err(stopped));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let State::Threaded { thread, .. } = mem::replace(&mut self.state, State::Ended(None)) else {
                        continue;
                    };
                    match thread.join() {
                        Ok(items) => self.state = State::Ended(Some(items)),
                        Err(panic) => return Some(Err(broken(panic))),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Error;

    use super::*;

    #[test]
    fn items_keep_their_order() {
        for ready in [0, 1, 4] {
            let ahead = Ahead::new((0..1000).map(Ok), ready).unwrap();
            assert!(ahead.map(Result::unwrap).eq(0..1000));
            let endless = Ahead::new((0..).map(Ok), ready).unwrap();
            assert!(endless.take(3).map(Result::unwrap).eq(0..3));
        }
    }

    #[test]
    fn a_panic_is_an_error_and_not_the_end() {
        let items = (0..5).map(|i| if i < 3 { Ok(i) } else { panic!("broke down at {i}") });
        let mut ahead = Ahead::new(items, 1).unwrap();
        assert_eq!(ahead.by_ref().take(3).map(Result::unwrap).sum::<i32>(), 3);
        let error = ahead.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("broke down at 3"), "{error}");
        assert!(ahead.next().is_none() && ahead.into_inner().is_err());
    }

    #[test]
    fn the_iterator_comes_back() {
        for ready in [0, 1, 3] {
            let mut ahead = Ahead::new((0..100).map(Ok::<usize, Error>), ready).unwrap();
            assert_eq!(ahead.next().unwrap().unwrap(), 0);
            let rest = ahead.into_inner().unwrap().map(Result::unwrap).collect::<Vec<_>>();
            assert!((99 - ready..=99).contains(&rest.len()) && rest.last() == Some(&99), "{} items left", rest.len());
        }
    }
}
