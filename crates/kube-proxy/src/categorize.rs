//! Which endpoints traffic to a service may go to from this node.

use crate::model::{Endpoint, Service, ServicePort};

/// What the choice depends on besides the service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub node: String,
    pub zone: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice<'a> {
    /// For the traffic policy Cluster.
    pub cluster: Vec<&'a Endpoint>,
    /// For the traffic policy Local.
    pub local: Vec<&'a Endpoint>,
    /// Whether any node has an endpoint that could serve.
    pub any: bool,
}

impl<'a> Choice<'a> {
    /// Every endpoint traffic from this node can reach, each once.
    pub fn reachable(&self) -> Vec<&'a Endpoint> {
        let mut out = self.cluster.clone();
        out.extend(
            self.local.iter().filter(|l| !self.cluster.iter().any(|c| (c.ip, c.port) == (l.ip, l.port))),
        );
        out
    }
}

/// Ready endpoints that the hints prefer, else all ready ones, else those that still serve while they terminate.
pub fn categorize<'a>(
    endpoints: &'a [Endpoint],
    service: &Service,
    port: &ServicePort,
    place: &Place,
) -> Choice<'a> {
    let mut choice = Choice::default();
    let external = service.externally_accessible(port);
    let fading = |e: &&Endpoint| !e.ready && e.serving && e.terminating;
    // Even where only local endpoints take external traffic, traffic from inside the cluster may go anywhere.
    if !service.internal_local || external {
        let preference = preference(endpoints, place);
        choice.cluster = endpoints.iter().filter(|e| e.ready && preference.allows(e, place)).collect();
        if choice.cluster.is_empty() {
            choice.cluster = endpoints.iter().filter(fading).collect();
        }
        choice.any = !choice.cluster.is_empty();
    }
    if service.internal_local || (service.external_local && external) {
        choice.any |= endpoints.iter().any(|e| e.ready || fading(&e));
        choice.local = endpoints.iter().filter(|e| e.local && e.ready).collect();
        if choice.local.is_empty() {
            choice.local = endpoints.iter().filter(|e| e.local && fading(e)).collect();
        }
    }
    choice
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Preference {
    None,
    SameNode,
    SameZone,
}

impl Preference {
    fn allows(self, endpoint: &Endpoint, place: &Place) -> bool {
        match self {
            Preference::None => true,
            Preference::SameNode => endpoint.node_hints.contains(&place.node),
            Preference::SameZone => endpoint.zone_hints.contains(&place.zone),
        }
    }
}

/// Hints count only when every ready endpoint has them and one of them is for here.
fn preference(endpoints: &[Endpoint], place: &Place) -> Preference {
    let ready = || endpoints.iter().filter(|e| e.ready);
    if ready().next().is_none() {
        return Preference::None;
    }
    if ready().all(|e| !e.node_hints.is_empty()) && ready().any(|e| e.node_hints.contains(&place.node)) {
        return Preference::SameNode;
    }
    if ready().all(|e| !e.zone_hints.is_empty()) && ready().any(|e| e.zone_hints.contains(&place.zone)) {
        return Preference::SameZone;
    }
    Preference::None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    /// `10.0.0.1 ready local zone=a node=n1`
    fn endpoint(text: &str) -> Endpoint {
        let mut words = text.split_whitespace();
        let mut e = Endpoint {
            ip: words.next().unwrap().parse().unwrap(),
            port: 80,
            ready: false,
            serving: false,
            terminating: false,
            local: false,
            zone_hints: vec![],
            node_hints: vec![],
        };
        for word in words {
            match word.split_once('=') {
                Some(("zone", z)) => e.zone_hints.push(z.into()),
                Some(("node", n)) => e.node_hints.push(n.into()),
                _ if word == "ready" => (e.ready, e.serving) = (true, true),
                _ if word == "fading" => (e.serving, e.terminating) = (true, true),
                _ if word == "terminating" => e.terminating = true,
                _ if word == "local" => e.local = true,
                other => panic!("{other:?}"),
            }
        }
        e
    }

    #[test]
    fn chooses_endpoints() {
        // Endpoints; policy (i = internal Local, e = external Local, x = reachable from outside); cluster; local; any.
        let cases: &[(&[&str], &str, &str, &str, bool)] = &[
            (&[], "", "", "", false),
            (&["10.0.0.1 ready", "10.0.0.2"], "", "1", "", true),
            (&["10.0.0.1 fading", "10.0.0.2 ready"], "", "2", "", true),
            (&["10.0.0.1 fading", "10.0.0.2 terminating"], "", "1", "", true),
            (&["10.0.0.1 terminating"], "", "", "", false),
            (&["10.0.0.1 ready", "10.0.0.2 ready local"], "i", "", "2", true),
            (&["10.0.0.1 ready"], "i", "", "", true),
            (&["10.0.0.1 ready", "10.0.0.2 fading local"], "ex", "1", "2", true),
            (&["10.0.0.1 ready", "10.0.0.2 ready local"], "e", "12", "", true),
            (&["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=b"], "", "1", "", true),
            (&["10.0.0.1 ready zone=b", "10.0.0.2 ready zone=c"], "", "12", "", true),
            (&["10.0.0.1 ready zone=a", "10.0.0.2 ready"], "", "12", "", true),
            (&["10.0.0.1 ready zone=a node=n2", "10.0.0.2 ready zone=a node=n1"], "", "2", "", true),
            (&["10.0.0.1 ready zone=a node=n2", "10.0.0.2 ready zone=b node=n3"], "", "1", "", true),
        ];
        let port =
            |node_port| ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80, node_port };
        let place = Place { node: "n1".into(), zone: "a".into() };
        for (endpoints, policy, cluster, local, any) in cases {
            let endpoints: Vec<Endpoint> = endpoints.iter().map(|e| endpoint(e)).collect();
            let service = Service {
                internal_local: policy.contains('i'),
                external_local: policy.contains('e'),
                ..Default::default()
            };
            let port = port(if policy.contains('x') { 30080 } else { 0 });
            let choice = categorize(&endpoints, &service, &port, &place);
            let show =
                |list: &[&Endpoint]| list.iter().map(|e| e.ip.to_string().pop().unwrap()).collect::<String>();
            assert_eq!(
                (show(&choice.cluster), show(&choice.local), choice.any),
                (cluster.to_string(), local.to_string(), *any),
                "{endpoints:?} {policy}"
            );
        }
    }
}
