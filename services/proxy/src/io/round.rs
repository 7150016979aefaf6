//! Who goes first among those that are ready.

use std::future::poll_fn;
use std::task::Poll;

/// Lets all that are ready go first. Unlike [`tokio::task::yield_now`] it does not wait for another look at the kernel's
/// list (which tokio takes by itself after some dozens of polls). So those that one look woke all read before one of them
/// writes, and their writes follow each other: who they are for stays awake from one to the next, instead of being woken
/// for each. The price: each waits for what the others read, and for the plugins that look at it.
pub(crate) async fn after_others() {
    let mut went_back = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut went_back, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use futures_util::future::{join, join_all};
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    /// Does something on a worker's kind of runtime.
    fn run(f: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        LocalSet::new().block_on(&runtime, f);
    }

    #[test]
    fn all_that_are_ready_read_before_one_writes() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        run(async {
            let tasks: Vec<_> = (0..3)
                .map(|task| {
                    let seen = Rc::clone(&seen);
                    spawn_local(async move {
                        seen.borrow_mut().push((task, "reads"));
                        after_others().await;
                        seen.borrow_mut().push((task, "writes"));
                    })
                })
                .collect();
            join_all(tasks).await;
        });
        let order: Vec<_> = ["reads", "writes"].iter().flat_map(|what| (0..3).map(move |task| (task, *what))).collect();
        assert_eq!(*seen.borrow(), order);
    }

    #[test]
    fn the_kernel_is_not_asked_in_between() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (first, second) = (Rc::clone(&seen), Rc::clone(&seen));
        run(async {
            let goes = spawn_local(async move {
                after_others().await;
                first.borrow_mut().push("goes on");
            });
            let asks = spawn_local(async move {
                yield_now().await;
                second.borrow_mut().push("asks the kernel");
            });
            let _ = join(goes, asks).await;
        });
        assert_eq!(*seen.borrow(), ["goes on", "asks the kernel"]);
    }
}
