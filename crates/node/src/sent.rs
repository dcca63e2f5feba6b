//! The body of a caller's request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// Of what nobody wants so much is read over, for so long.
const REST: usize = 64 << 20;
const REST_TIME: Duration = Duration::from_secs(5);

/// A body of which what nobody took can be read over before the caller is answered: still sending, he would find the
/// connection closed and not learn the answer.
pub(crate) struct Sent {
    body: Option<Incoming>,
    rest: Rest,
}

/// Where a body is once it was let go of before its end.
#[derive(Clone, Default)]
pub(crate) struct Rest(Arc<Mutex<Option<Incoming>>>);

impl Sent {
    pub(crate) fn new(body: Incoming) -> (Self, Rest) {
        let rest = Rest::default();
        (Self { body: Some(body), rest: rest.clone() }, rest)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|it| !it.is_end_stream()) {
            *self.rest.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

impl Rest {
    /// Reads it over, as far as it is worth it. A body that is still being passed on is left alone.
    pub(crate) async fn pass_over(self) {
        let Some(mut body) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let read = async {
            let mut left = REST;
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(REST_TIME, read).await;
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let next = std::task::ready!(Pin::new(body).poll_frame(cx));
        if next.as_ref().is_none_or(Result::is_err) {
            self.body = None;
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
