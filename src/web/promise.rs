//! Promises that are kept or broken, whatever happens.

use std::{cell::RefCell, collections::BTreeMap, panic};

use js_sys::{Error, Function, Promise};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::MessageChannel;

thread_local! {
    /// How to reject the promises that are open, by number.
    static OPEN: RefCell<BTreeMap<u64, Function>> = const { RefCell::new(BTreeMap::new()) };
}

/// A promise of what `work` comes to.
pub fn promise(work: impl Future<Output = Result<JsValue, JsValue>> + 'static) -> Promise {
    let mut work = Some(work);
    Promise::new(&mut |resolve, reject| {
        let Some(work) = work.take() else { return };
        let number = OPEN.with_borrow_mut(|open| {
            let number = open.last_key_value().map_or(0, |(last, _)| last + 1);
            open.insert(number, reject.clone());
            number
        });
        spawn_local(async move {
            let done = work.await;
            OPEN.with_borrow_mut(|open| open.remove(&number));
            // A page that is gone hears nothing.
            let _ = match done {
                Ok(value) => resolve.call1(&JsValue::NULL, &value),
                Err(error) => reject.call1(&JsValue::NULL, &error),
            };
        });
    })
}

/// From now on a panic rejects every open promise, and says on the console where it was.
pub fn reject_on_panic() {
    panic::set_hook(Box::new(|info| {
        let words =
            format!("harmonica stopped at a fault of its own, and must be loaded anew: {info}");
        let open = OPEN.try_with(|open| {
            open.try_borrow_mut()
                .map(|mut open| std::mem::take(&mut *open))
        });
        let error = Error::new(&words);
        for reject in open.into_iter().flatten().flat_map(BTreeMap::into_values) {
            let _ = reject.call1(&JsValue::NULL, &error);
        }
        web_sys::console::error_1(&error);
    }));
}

/// Lets the page do what waits, such as a click on “cancel”.
pub async fn turn() -> Result<(), JsValue> {
    // A timer would wait four milliseconds, which is as long as a step may take.
    let channel = MessageChannel::new()?;
    let (here, there) = (channel.port1(), channel.port2());
    let arrived = Promise::new(&mut |resolve, _| here.set_onmessage(Some(&resolve)));
    there.post_message(&JsValue::NULL)?;
    JsFuture::from(arrived).await?;
    // Ports that stay open are kept for ever.
    here.set_onmessage(None);
    here.close();
    Ok(())
}
