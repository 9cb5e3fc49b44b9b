//! What a guard shows over http: its metrics to Prometheus, and whether all is well. Nothing else, and nothing secret.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use launcher::GuardMetrics;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at the same time; a further one waits.
const CONNECTIONS: usize = 16;
/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers until the program ends. Gives the address that it listens at.
pub async fn serve(address: SocketAddr, metrics: Arc<GuardMetrics>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, say: that passes.
                tokio::time::sleep(PATIENCE).await;
                continue;
            };
            let metrics = Arc::clone(&metrics);
            tokio::spawn(async move {
                let answer = service_fn(|request| std::future::ready(answer(&request, &metrics)));
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), answer);
                // Whoever asked may go before the answer.
                let _ = connection.await;
                drop(permit);
            });
        }
    });
    Ok(bound)
}

fn answer(request: &Request<Incoming>, metrics: &GuardMetrics) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics.to_prometheus())
        }
        (&Method::GET | &Method::HEAD, "/health") if metrics.is_healthy() => {
            (StatusCode::OK, "text/plain", "the application runs\n".to_owned())
        }
        (&Method::GET | &Method::HEAD, "/health") => {
            (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the application does not run as a whole\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /metrics and /health\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}
