//! Admission plugins in upstream’s order.
