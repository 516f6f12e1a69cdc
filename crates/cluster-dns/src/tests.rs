//! The server over loopback, with a resolver of our own behind it.

use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::json;

use super::*;

fn index(endpoints: usize) -> Index {
    let mut index = Index::default();
    index.put_namespace("default", true);
    let put = |index: &mut Index, name: &str, spec: serde_json::Value| {
        let body = serde_json::to_vec(&json!({ "spec": spec })).unwrap();
        index.put_service("default", name, index::Service::decode(&body));
    };
    put(&mut index, "web", json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
    put(&mut index, "many", json!({"clusterIP": "None"}));
    put(&mut index, "ext", json!({"type": "ExternalName", "externalName": "example.com"}));
    put(
        &mut index,
        "alias",
        json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}),
    );
    put(
        &mut index,
        "loop",
        json!({"type": "ExternalName", "externalName": "loop.default.svc.cluster.local"}),
    );
    let endpoints: Vec<_> = (0..endpoints)
        .map(|i| json!({"addresses": [format!("10.244.{}.{}", i / 250, i % 250 + 1)]}))
        .collect();
    let body = serde_json::to_vec(&json!({ "endpoints": endpoints })).unwrap();
    index.put_slice("default", "many-1", Some(("many", index::Slice::decode(&body).unwrap())));
    let body = serde_json::to_vec(
        &json!({ "endpoints": endpoints, "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2},
        {"name": "c", "port": 3}, {"name": "d", "port": 4}] }),
    );
    put(&mut index, "crowd", json!({"clusterIP": "None"}));
    index.put_slice("default", "crowd-1", Some(("crowd", index::Slice::decode(&body.unwrap()).unwrap())));
    index
}

/// Answers every A question with 192.0.2.80, except for `silent.`, and knows nothing of `missing.`.
async fn resolver() -> SocketAddr {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..n]).unwrap();
            let question = query.queries[0].clone();
            if question.name.to_ascii() == "silent." {
                continue;
            }
            let mut reply = Message::response(query.metadata.id, OpCode::Query);
            if question.name.to_ascii() == "missing." {
                reply.metadata.response_code = ResponseCode::NXDomain;
            } else if question.query_type == RecordType::A {
                let data = RData::A(A([192, 0, 2, 80].into()));
                reply.add_answer(Record::from_rdata(question.name.clone(), 60, data));
            }
            reply.add_query(question);
            socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    address
}

fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn ask_udp(server: SocketAddr, bytes: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    // Answers must come from where the question went.
    socket.connect(server).unwrap();
    socket.send(bytes).unwrap();
    let mut buffer = [0; 65535];
    let n = socket.recv(&mut buffer).ok()?;
    let reply = Message::from_vec(&buffer[..n]).unwrap();
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (4711, MessageType::Response));
    Some(reply)
}

fn ask_tcp(server: SocketAddr, bytes: &[u8]) -> Message {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(server).unwrap();
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut reply).unwrap();
    Message::from_vec(&reply).unwrap()
}

fn show(reply: &Message) -> String {
    let answers: Vec<String> = reply.answers.iter().map(|r| r.data.to_string()).collect();
    format!("{} {}", reply.metadata.response_code, answers.join(","))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serves() {
    let stop = CancellationToken::new();
    let listen = vec!["127.0.0.1:0".parse().unwrap(), "0.0.0.0:0".parse().unwrap()];
    let config = Config { upstreams: vec![resolver().await], ..Config::new(listen) };
    let shared = Arc::new(shared(&config, Arc::new(RwLock::new(index(300)))).unwrap());
    let mut tasks = JoinSet::new();
    let bound = serve(&config.listen, shared, &mut tasks, &stop).await.unwrap();
    let (server, any) = (bound[0], SocketAddr::from(([127, 0, 0, 2], bound[1].port())));
    tokio::task::spawn_blocking(move || {
        for (name, want) in [
            ("web.default.svc.cluster.local", "No Error 10.96.0.7"),
            ("none.default.svc.cluster.local", "Non-Existent Domain "),
            ("example.com", "No Error 192.0.2.80"),
            ("example.com", "No Error 192.0.2.80"),
            ("missing", "Non-Existent Domain "),
            ("ext.default.svc.cluster.local", "No Error example.com.,192.0.2.80"),
            ("alias.default.svc.cluster.local", "No Error web.default.svc.cluster.local.,10.96.0.7"),
            ("loop.default.svc.cluster.local", "Server Failure "),
        ] {
            for server in [server, any] {
                let reply = ask_udp(server, &question(name, RecordType::A, None)).unwrap();
                assert_eq!(show(&reply), want, "{name}");
                assert!(reply.metadata.recursion_available);
            }
        }
        let negative =
            ask_udp(server, &question("x.default.svc.cluster.local", RecordType::A, None)).unwrap();
        assert!(negative.metadata.authoritative && negative.authorities.len() == 1);

        // Too much for a datagram, less so with EDNS, all of it over TCP.
        let many = |edns| question("many.default.svc.cluster.local", RecordType::A, edns);
        let short = ask_udp(server, &many(None)).unwrap();
        assert!(
            short.metadata.truncation && (10..40).contains(&short.answers.len()),
            "{}",
            short.answers.len()
        );
        let longer = ask_udp(server, &many(Some(4096))).unwrap();
        assert!(longer.metadata.truncation && longer.edns.is_some() && longer.answers.len() > 100);
        assert_eq!(ask_tcp(server, &many(None)).answers.len(), 300);
        let srv = question("crowd.default.svc.cluster.local", RecordType::SRV, None);
        let crowd = ask_tcp(server, &srv);
        assert!(crowd.metadata.truncation && crowd.answers.len() > 300);
        assert_eq!(
            show(&ask_tcp(server, &question("web.default.svc.cluster.local", RecordType::A, None))),
            "No Error 10.96.0.7"
        );

        // Nonsense.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        socket.connect(server).unwrap();
        socket.send(&[0x12, 0x67, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff]).unwrap();
        let mut buffer = [0; 512];
        let n = socket.recv(&mut buffer).unwrap();
        let reply = Message::from_vec(&buffer[..n]).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        let mut answer = question("web.default.svc.cluster.local", RecordType::A, None);
        answer[2] |= 0x80;
        assert!(ask_udp(server, &answer).is_none(), "answered an answer");
    })
    .await
    .unwrap();
    stop.cancel();
    while tasks.join_next().await.is_some() {}
}
