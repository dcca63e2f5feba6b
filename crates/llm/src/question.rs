use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

/// A request's body that tells when a connection has taken it: from then on the provider may have read it.
pub(crate) struct Question {
    text: Bytes,
    sent: Option<oneshot::Sender<()>>,
}

impl Question {
    pub(crate) fn new(text: String) -> (Self, oneshot::Receiver<()>) {
        let (sent, told) = oneshot::channel();
        (Self { text: text.into(), sent: Some(sent) }, told)
    }
}

impl Body for Question {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(sent) = self.sent.take() else { return Poll::Ready(None) };
        // Who asked may be gone.
        let _ = sent.send(());
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.text)))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.len() as u64)
    }
}
