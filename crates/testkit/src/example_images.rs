//! Stand-ins for the public images that examples/two-services names, made of the distribution's own packages, for
//! machines that reach no registry. PostgreSQL stands in MongoDB's place, and listens where MongoDB would.

use std::path::Path;

use anyhow::{Context, Result};
use oci_image::{Image, RunConfig};

use crate::packages::Packages;

/// A public image and the one that stands in for it.
pub struct StandIn {
    pub public: &'static str,
    pub name: &'static str,
    pub file: &'static str,
}

pub const STAND_INS: [StandIn; 4] = [
    StandIn {
        public: "docker.io/library/nginx:1.29",
        name: "isopod.local/examples/nginx:1",
        file: "nginx.tar",
    },
    StandIn { public: "docker.io/library/redis:8", name: "isopod.local/examples/redis:1", file: "redis.tar" },
    StandIn {
        public: "docker.io/library/mongo:8",
        name: "isopod.local/examples/postgres:1",
        file: "postgres.tar",
    },
    StandIn {
        public: "docker.io/library/busybox:1.37",
        name: "isopod.local/examples/busybox:1",
        file: "busybox.tar",
    },
];

/// Writes the archives into `directory`; those that are there already stay.
pub fn build(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for stand_in in &STAND_INS {
        let path = directory.join(stand_in.file);
        if path.exists() {
            continue;
        }
        let scratch = directory.join(format!("{}.work", stand_in.file));
        let image = match stand_in.file {
            "nginx.tar" => nginx(&scratch)?,
            "redis.tar" => redis(&scratch)?,
            "postgres.tar" => postgres(&scratch)?,
            _ => busybox(&scratch)?,
        };
        let partial = directory.join(format!("{}.part", stand_in.file));
        image.write(stand_in.name, std::io::BufWriter::new(std::fs::File::create(&partial)?))?;
        std::fs::rename(&partial, &path)?;
        std::fs::remove_dir_all(&scratch)?;
        println!("built {} in place of {}", stand_in.name, stand_in.public);
    }
    Ok(())
}

/// Busybox with all its applets, and accounts.
fn base(scratch: &Path, config: RunConfig) -> Result<Image> {
    // Not the static one: its name lookups need libraries that an image made of one file lacks.
    let packages = Packages::fetch(&scratch.join("busybox"), &["busybox"], &[])?;
    let mut image = Image::new(RunConfig {
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
        ..config
    });
    let busybox = packages.path("/bin/busybox");
    packages.program(&mut image, "/bin/busybox")?;
    for library in ["libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"] {
        let path = format!("/lib/{}-linux-gnu/{library}", std::env::consts::ARCH);
        if Path::new(&path).exists() {
            image.copy(&path, &path)?;
        }
    }
    let applets = std::process::Command::new(&busybox).arg("--list").output().context("list applets")?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        image.link(Path::new("/bin").join(applet), "busybox");
    }
    image
        .directory("/tmp", 0o1777, (0, 0))
        .directory("/root", 0o700, (0, 0))
        .file("/etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nservice:x:999:999::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
        .file("/etc/group", 0o644, "root:x:0:\nservice:x:999:\nnogroup:x:65534:\n");
    Ok(image)
}

fn busybox(scratch: &Path) -> Result<Image> {
    base(scratch, RunConfig { command: vec!["sh".into()], ..RunConfig::default() })
}

const NGINX_CONF: &str = "user nobody nogroup;\nworker_processes 1;\npid /tmp/nginx.pid;\nerror_log /dev/stderr;\n\
    events { worker_connections 256; }\n\
    http {\n  access_log /dev/stdout;\n  server {\n    listen 80;\n    root /usr/share/nginx/html;\n  }\n}\n";

fn nginx(scratch: &Path) -> Result<Image> {
    let command = ["nginx", "-g", "daemon off;"].map(String::from).to_vec();
    let mut image =
        base(scratch, RunConfig { command, exposed_ports: vec!["80/tcp".into()], ..RunConfig::default() })?;
    let packages = Packages::fetch(&scratch.join("nginx"), &["nginx"], &[])?;
    packages.program(&mut image, "/usr/sbin/nginx")?;
    image
        .file("/etc/nginx/nginx.conf", 0o644, NGINX_CONF)
        .file("/usr/share/nginx/html/index.html", 0o644, "<h1>Welcome to nginx!</h1>\n")
        .directory("/var/lib/nginx", 0o777, (0, 0))
        .directory("/var/log/nginx", 0o777, (0, 0));
    Ok(image)
}

fn redis(scratch: &Path) -> Result<Image> {
    let command =
        ["redis-server", "--protected-mode", "no", "--dir", "/tmp", "--save", ""].map(String::from).to_vec();
    let config = RunConfig {
        command,
        user: "999:999".into(),
        exposed_ports: vec!["6379/tcp".into()],
        ..RunConfig::default()
    };
    let mut image = base(scratch, config)?;
    let packages = Packages::fetch(&scratch.join("redis"), &["redis-server", "redis-tools"], &[])?;
    packages.program(&mut image, "/usr/bin/redis-check-rdb")?;
    packages.program(&mut image, "/usr/bin/redis-cli")?;
    image.link("/usr/bin/redis-server", "redis-check-rdb");
    Ok(image)
}

const POSTGRES_START: &str = "#!/bin/sh\nset -e\nexport PGDATA=/data/db/postgres\n\
    if [ ! -f $PGDATA/PG_VERSION ]; then\n  initdb --auth=trust --no-sync --username=postgres >/dev/null\n  \
    echo 'host all all all trust' >> $PGDATA/pg_hba.conf\nfi\n\
    exec postgres -c listen_addresses='*' -c port=27017 -c unix_socket_directories=/tmp -c shared_buffers=16MB\n";

fn postgres(scratch: &Path) -> Result<Image> {
    const BIN: &str = "/usr/lib/postgresql/15/bin";
    let config = RunConfig {
        command: vec!["/start".into()],
        user: "999:999".into(),
        exposed_ports: vec!["27017/tcp".into()],
        ..RunConfig::default()
    };
    let mut image = base(scratch, config)?;
    let packages = Packages::fetch(
        &scratch.join("postgres"),
        &["postgresql-15", "postgresql-client-15"],
        &["libllvm", "libperl"],
    )?;
    for program in ["postgres", "initdb"] {
        packages.program(&mut image, &format!("{BIN}/{program}"))?;
    }
    packages.program(&mut image, &format!("{BIN}/psql"))?;
    for tree in ["/usr/share/postgresql/15", "/usr/lib/postgresql/15/lib"] {
        image.copy_tree(packages.path(tree), tree)?;
    }
    image.directory("/data/db", 0o777, (999, 999)).file("/start", 0o755, POSTGRES_START).config.env =
        vec![format!("PATH={BIN}:/usr/sbin:/usr/bin:/sbin:/bin")];
    Ok(image)
}
