//! Makes the gRPC code from `proto/` without protoc, and the descriptor set that reflection and tests read.
//!
//! Fields with the standard option `debug_redact` hold what must not be logged: values, ids that a caller chose, texts of
//! access keys. prost ignores that option, so their messages get a `Debug` from here that leaves them out.

use protox::Compiler;
use protox::prost_reflect::{FieldDescriptor, MessageDescriptor, OneofDescriptor};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let mut files: Vec<PathBuf> =
        fs::read_dir(root.join("pii/vault/v1"))?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == "proto"));
    files.sort();
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut plain = Compiler::new([root])?;
    plain.include_imports(true).open_files(&files)?;
    fs::write(out.join("descriptor_set.bin"), plain.encode_file_descriptor_set())?;

    let mut skipped = Vec::new();
    let mut debug = String::new();
    let mut names = String::new();
    for message in plain.descriptor_pool().all_messages() {
        if message.package_name() == "pii.vault.v1" && message.parent_message().is_none() {
            name_of_message(&mut names, &message)?;
        }
        if message.package_name() == "pii.vault.v1" && message.fields().any(|f| redacted(&f)) {
            skipped.push(format!(".{}", message.full_name()));
            debug_of_message(&mut debug, &message)?;
        }
    }
    fs::write(out.join("redacted_debug.rs"), debug)?;
    fs::write(out.join("message_names.rs"), names)?;

    // Comments become documentation of the generated types; they are not worth carrying in the binary.
    let mut commented = Compiler::new([root])?;
    commented.include_source_info(true).include_imports(true).open_files(&files)?;
    tonic_prost_build::configure()
        .bytes(".")
        .skip_debug(skipped)
        .emit_rerun_if_changed(false)
        .compile_fds(commented.file_descriptor_set())?;

    // What receivers of logs speak: the official files, as opentelemetry-proto 1.x has them.
    let mut otlp = Compiler::new([root])?;
    otlp.include_imports(true).open_files(["opentelemetry/proto/collector/logs/v1/logs_service.proto"])?;
    let otlp = otlp.file_descriptor_set();
    tonic_prost_build::configure().include_file("otlp.rs").emit_rerun_if_changed(false).compile_fds(otlp)?;
    Ok(())
}

fn redacted(field: &FieldDescriptor) -> bool {
    field.options().get_field_by_name("debug_redact").is_some_and(|v| v.as_bool() == Some(true))
}

/// Ties a generated type to its descriptor, for whoever prints messages by their proto field names.
fn name_of_message(out: &mut String, message: &MessageDescriptor) -> Result<(), Box<dyn Error>> {
    writeln!(out, "impl ::prost::Name for {} {{", message.name())?;
    writeln!(out, "    const NAME: &'static str = {:?};", message.name())?;
    writeln!(out, "    const PACKAGE: &'static str = {:?};\n}}", message.package_name())?;
    Ok(())
}

fn debug_of_message(out: &mut String, message: &MessageDescriptor) -> Result<(), Box<dyn Error>> {
    let name = message.name();
    writeln!(out, "impl ::core::fmt::Debug for {name} {{")?;
    writeln!(out, "    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{")?;
    writeln!(out, "        f.debug_struct({name:?})")?;
    for field in message.fields().filter(|f| f.containing_oneof().is_none()) {
        let label = field.name();
        if redacted(&field) {
            writeln!(out, "            .field({label:?}, &::core::format_args!(\"..\"))")?;
        } else {
            writeln!(out, "            .field({label:?}, &self.r#{label})")?;
        }
    }
    for oneof in message.oneofs() {
        let label = oneof.name();
        writeln!(out, "            .field({label:?}, &self.r#{label})")?;
    }
    writeln!(out, "            .finish()\n    }}\n}}")?;
    for oneof in message.oneofs() {
        debug_of_oneof(out, message, &oneof)?;
    }
    Ok(())
}

fn debug_of_oneof(
    out: &mut String,
    message: &MessageDescriptor,
    oneof: &OneofDescriptor,
) -> Result<(), Box<dyn Error>> {
    let path = format!("{}::{}", snake(message.name()), camel(oneof.name()));
    writeln!(out, "impl ::core::fmt::Debug for {path} {{")?;
    writeln!(out, "    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{")?;
    writeln!(out, "        match self {{")?;
    for field in oneof.fields() {
        let variant = camel(field.name());
        if redacted(&field) {
            writeln!(out, "            {path}::{variant}(_) => f.write_str(\"{variant}(..)\"),")?;
        } else {
            writeln!(out, "            {path}::{variant}(v) => f.debug_tuple({variant:?}).field(v).finish(),")?;
        }
    }
    writeln!(out, "        }}\n    }}\n}}")?;
    Ok(())
}

/// `PutFieldsRequest` to `put_fields_request`, as prost names the module of a message's oneofs.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// `unique_value` to `UniqueValue`, as prost names a oneof and its variants.
fn camel(name: &str) -> String {
    let word = |w: &str| w[..1].to_ascii_uppercase() + &w[1..];
    name.split('_').map(word).collect()
}
