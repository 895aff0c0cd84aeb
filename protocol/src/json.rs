//! The text form: JSON.
