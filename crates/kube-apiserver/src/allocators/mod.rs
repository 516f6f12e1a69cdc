//! Values reserved outside objects: cluster IPs and node ports.
