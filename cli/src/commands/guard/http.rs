//! What a guard shows over http: its metrics to Prometheus, and whether all is well. Nothing else, and nothing secret.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coordinator::Strangers;
use guard::GuardMetrics;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// Connections at the same time; one more pushes out the one who came first.
const CONNECTIONS: usize = 64;
/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may last, however slowly the answer is read.
const AT_MOST: Duration = Duration::from_secs(15);
/// How long is waited where no connection can be taken.
const PAUSE: Duration = Duration::from_millis(20);

/// The applications that are guarded, by their names.
#[derive(Debug, Clone, Default)]
pub struct Shown(Arc<Mutex<BTreeMap<String, Arc<GuardMetrics>>>>);

impl Shown {
    /// One more, in the place of any of that name.
    pub fn insert(&self, name: String, metrics: Arc<GuardMetrics>) {
        self.lock().insert(name, metrics);
    }

    /// One less.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    fn all(&self) -> Vec<Arc<GuardMetrics>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<GuardMetrics>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers until the program ends. Gives the address that it listens at.
pub async fn serve(address: SocketAddr, shown: Shown) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    tokio::spawn(async move {
        let room = Strangers::new(CONNECTIONS);
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, say, which those who say nothing are not to hold.
                room.push_out_oldest();
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let shown = shown.clone();
            tokio::spawn(room.host(AT_MOST, async move {
                let answer = service_fn(|request| std::future::ready(answer(&request, &shown.all())));
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), answer);
                // Whoever asked may go before the answer.
                let _ = connection.await;
            }));
        }
    });
    Ok(bound)
}

fn answer(request: &Request<Incoming>, all: &[Arc<GuardMetrics>]) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", GuardMetrics::to_prometheus(all))
        }
        (&Method::GET | &Method::HEAD, "/health") if all.iter().all(|one| one.is_healthy()) => {
            (StatusCode::OK, "text/plain", "what is guarded runs\n".to_owned())
        }
        (&Method::GET | &Method::HEAD, "/health") => {
            (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not all that is guarded runs as a whole\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /metrics and /health\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn idle_connections_keep_nobody_from_asking() {
        let address = serve(([127, 0, 0, 1], 0).into(), Shown::default()).await.unwrap();
        let mut idle = Vec::new();
        for _ in 0..300 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let asking = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = timeout(PATIENCE / 2, asking).await.expect("strangers have to be waited for");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
