//! What OpenAPI documents say beyond the schema tables: descriptions, which the crate `k8s-openapi` has, and the rows
//! of `tables/openapi.tsv`: `type field enum default`, or `type - - x-kubernetes-unions` where no field is named.

use std::collections::BTreeMap;
use std::io::Write;

use k8s_openapi::schemars::SchemaGenerator;
use serde_json::Value;

macro_rules! describe {
    ($generator:expr, $($module:path: $($kind:ident)+;)+) => {
        $({ use $module as module; $($generator.subschema_for::<module::$kind>();)+ })+
    };
}

/// `{type: {field: {"d": description, "e": enum, "z": default}}}`, gzipped; what is said of the type itself is under
/// the empty name (`"u"`: unions).
pub fn generate(table: &str) -> Vec<u8> {
    let mut generator = SchemaGenerator::default();
    use k8s_openapi::api;
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
    use k8s_openapi::apimachinery::pkg::apis::meta;
    use k8s_openapi::apimachinery::pkg::version;
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
    describe!(generator,
        api::core::v1: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
            PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount;
        api::admissionregistration::v1: MutatingAdmissionPolicy MutatingAdmissionPolicyBinding
            MutatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding
            ValidatingWebhookConfiguration;
        api::admissionregistration::v1beta1: MutatingAdmissionPolicy MutatingAdmissionPolicyBinding;
        api::admissionregistration::v1alpha1: MutatingAdmissionPolicy MutatingAdmissionPolicyBinding;
        apiextensions::v1: CustomResourceDefinition;
        apiregistration::v1: APIService;
        api::apps::v1: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet;
        api::apiserverinternal::v1alpha1: StorageVersion;
        api::authentication::v1: SelfSubjectReview TokenRequest TokenReview;
        api::authorization::v1: LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview
            SubjectAccessReview;
        api::autoscaling::v1: HorizontalPodAutoscaler Scale;
        api::autoscaling::v2: HorizontalPodAutoscaler;
        api::batch::v1: CronJob Job;
        api::certificates::v1: CertificateSigningRequest;
        api::certificates::v1beta1: ClusterTrustBundle PodCertificateRequest;
        api::certificates::v1alpha1: ClusterTrustBundle;
        api::coordination::v1: Lease;
        api::coordination::v1beta1: LeaseCandidate;
        api::coordination::v1alpha2: LeaseCandidate;
        api::discovery::v1: EndpointSlice;
        api::events::v1: Event;
        api::flowcontrol::v1: FlowSchema PriorityLevelConfiguration;
        api::networking::v1: IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR;
        api::networking::v1beta1: IPAddress ServiceCIDR;
        api::node::v1: RuntimeClass;
        api::policy::v1: Eviction PodDisruptionBudget;
        api::rbac::v1: ClusterRole ClusterRoleBinding Role RoleBinding;
        api::resource::v1: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
        api::resource::v1beta2: DeviceClass DeviceTaintRule ResourceClaim ResourceClaimTemplate ResourceSlice;
        api::resource::v1beta1: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
        api::resource::v1alpha3: DeviceTaintRule ResourcePoolStatusRequest;
        api::scheduling::v1: PriorityClass;
        api::scheduling::v1alpha2: PodGroup Workload;
        api::storage::v1: CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass;
        api::storage::v1beta1: VolumeAttributesClass;
        api::storagemigration::v1beta1: StorageVersionMigration;
        meta::v1: APIGroupList APIResourceList APIVersions DeleteOptions Patch Status;
        version: Info;
    );
    let mut types: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for (name, schema) in generator.take_definitions(false) {
        let fields = types.entry(name).or_default();
        let described = |schema: &Value| schema["description"].as_str().map(|d| serde_json::json!({"d": d}));
        fields.extend(described(&schema).map(|d| (String::new(), d)));
        let properties = schema["properties"].as_object().into_iter().flatten();
        fields.extend(properties.filter_map(|(name, p)| Some((name.clone(), described(p)?))));
    }
    for row in table.lines() {
        let row: Vec<&str> = row.split('\t').collect();
        let column = |i: usize| row.get(i).copied().unwrap_or("");
        let said = types.entry(row[0].to_owned()).or_default().entry(row[1].to_owned()).or_default();
        if !column(2).is_empty() {
            said["e"] = column(2).split(',').collect();
        }
        if !column(3).is_empty() {
            said[if row[1].is_empty() { "u" } else { "z" }] =
                serde_json::from_str(column(3)).unwrap_or_else(|e| panic!("{row:?}: {e}"));
        }
    }
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let text = serde_json::to_vec(&types).expect("string keys");
    out.write_all(&text).expect("a Vec takes all");
    out.finish().expect("a Vec takes all")
}
