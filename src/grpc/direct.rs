//! The shortest way for the calls that are made most: GetFields and VerifyApiKey are decoded, answered and encoded here,
//! without the routing, the boxes and the buffers that the general machinery needs for any method. Whatever is not the
//! ordinary case (a message in pieces, compressed, not decodable) goes the general way, byte for byte as it came.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;

use crate::grpc::identity::Api;
use crate::grpc::limits::{MAX_DECODE_BYTES, MAX_ENCODE_BYTES};

/// The paths that are answered here.
pub const GET_FIELDS: &str = "/pii.vault.v1.RecordService/GetFields";
pub const VERIFY_API_KEY: &str = "/pii.vault.v1.CredentialService/VerifyApiKey";
/// Flag and length before a message.
const PREFIX: usize = 5;

/// All services; cloned per call.
#[derive(Clone)]
pub struct Services {
    routes: Routes,
    api: Option<Arc<Api>>,
}

impl Services {
    /// Services with an API behind them.
    pub fn new(routes: Routes, api: Arc<Api>) -> Self {
        Services { routes, api: Some(api) }
    }

    /// The same with what `change` adds to the routes.
    pub fn map(self, change: impl FnOnce(Routes) -> Routes) -> Self {
        Services { routes: change(self.routes), ..self }
    }
}

/// Services that know of no API: everything goes the general way.
impl From<Routes> for Services {
    fn from(routes: Routes) -> Self {
        Services { routes, api: None }
    }
}

impl tower::Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(())) // routes always are
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let plain = !request.headers().contains_key("grpc-encoding");
        match (self.api.as_ref().filter(|_| plain), request.uri().path()) {
            (Some(api), GET_FIELDS) => {
                let api = api.clone();
                Box::pin(direct(self.routes.clone(), request, async move |asked| api.read_fields(asked).await))
            }
            (Some(api), VERIFY_API_KEY) => {
                let api = api.clone();
                Box::pin(direct(self.routes.clone(), request, async move |asked| api.check_api_key(asked).await))
            }
            _ => Box::pin(tower::Service::call(&mut self.routes, request)),
        }
    }
}

/// Answers by `run` what is one whole message, and anything else by the routes.
async fn direct<Q, A, F>(
    mut routes: Routes,
    request: Request<Body>,
    run: impl FnOnce(tonic::Request<Q>) -> F,
) -> Result<Response<Body>, Infallible>
where
    Q: Message + Default,
    A: Message,
    F: Future<Output = Result<A, Status>>,
{
    let (parts, mut body) = request.into_parts();
    let first = body.frame().await;
    let whole = match &first {
        Some(Ok(frame)) => frame.data_ref().and_then(message::<Q>),
        _ => None,
    };
    // Some clients end the stream by a frame of its own.
    let second = if whole.is_some() && !body.is_end_stream() { body.frame().await } else { None };
    let (Some(message), None) = (whole, &second) else {
        let request = Request::from_parts(parts, Body::new(Replay { seen: [first, second], rest: body }));
        return tower::Service::call(&mut routes, request).await;
    };
    drop(body);
    let metadata = MetadataMap::from_headers(parts.headers);
    let request = tonic::Request::from_parts(metadata, parts.extensions, message);
    Ok(match run(request).await.and_then(|answer| encode(&answer)) {
        Ok(data) => answer(data),
        Err(status) => status.into_http(),
    })
}

/// The one message of a frame, if it is whole, plain and decodable.
fn message<Q: Message + Default>(frame: &Bytes) -> Option<Q> {
    let (prefix, message) = frame.split_first_chunk::<PREFIX>()?;
    let [flag, length @ ..] = *prefix;
    let whole = flag == 0 && u32::from_be_bytes(length) as usize == message.len() && message.len() <= MAX_DECODE_BYTES;
    whole.then(|| Q::decode(message).ok())?
}

/// The message with its prefix, in one buffer of its size.
fn encode(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    if length > MAX_ENCODE_BYTES {
        return Err(Status::out_of_range("the answer is too large"));
    }
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(length as u32);
    message.encode_raw(&mut out);
    Ok(out.freeze())
}

fn answer(data: Bytes) -> Response<Body> {
    let mut answer = Response::new(Body::new(Answer { data: Some(data), ended: false }));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

/// One message and the status 0.
struct Answer {
    data: Option<Bytes>,
    ended: bool,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// A body whose first frames were looked at already.
struct Replay {
    seen: [Option<Result<Frame<Bytes>, Status>>; 2],
    rest: Body,
}

impl http_body::Body for Replay {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.seen.iter_mut().find_map(Option::take) {
            Some(seen) => Poll::Ready(Some(seen)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.seen.iter().all(Option::is_none) && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::pb;

    #[test]
    fn only_one_whole_plain_message_is_taken() {
        let asked = pb::GetFieldsRequest { view: 1, ..Default::default() };
        let whole = encode(&asked).unwrap();
        let message = message::<pb::GetFieldsRequest>;
        assert_eq!(message(&whole), Some(asked));
        assert_eq!(message(&whole.slice(..whole.len() - 1)), None);
        let with = |at: usize, byte: u8| {
            let mut bytes = whole.to_vec();
            bytes[at] = byte;
            Bytes::from(bytes)
        };
        assert_eq!(message(&with(0, 1)), None, "compressed");
        assert_eq!(message(&with(PREFIX, 0xff)), None, "not protobuf");
        assert_eq!(message(&Bytes::from([&whole[..], &whole[..]].concat())), None, "two messages");
        assert_eq!(message(&Bytes::new()), None);
    }

    #[tokio::test]
    async fn an_answer_is_one_message_and_a_status() {
        let body = answer(Bytes::from_static(b"12345")).into_body();
        let body = body.collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "12345");
        let seen = [b"ab", b"cd"].map(|bytes| Some(Ok(Frame::data(Bytes::from_static(bytes)))));
        let replay = Replay { seen, rest: answer(Bytes::from_static(b"ef")).into_body() };
        assert_eq!(replay.collect().await.unwrap().to_bytes(), "abcdef");
    }
}
