# pii-vault: build stage with the compiler, final stage without shell, package manager or root.
#
#   docker build -t pii-vault .
#   docker run --read-only --cap-drop=ALL --security-opt=no-new-privileges --ulimit core=0 --ulimit memlock=-1 \
#     -v vault-data:/var/lib/pii-vault -v vault-keeper:/var/lib/pii-vault-keeper \
#     -v ./tls:/etc/pii-vault/tls:ro -v ./root.key:/run/secrets/root-kek:ro -p 7443:7443 pii-vault
#
# Two volumes on purpose: back up the first, never the second. A copy of the keeper, also by a volume snapshot, can open
# what was erased after it.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked && install -D target/release/pii-vault /out/usr/local/bin/pii-vault
# The final image cannot make directories: these give the volumes their owner (65532 is `nonroot` there) and mode.
RUN install -d -m 0700 -o 65532 -g 65532 /out/var/lib/pii-vault /out/var/lib/pii-vault-keeper

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build --chown=0:0 /out/usr/local/bin/pii-vault /usr/local/bin/pii-vault
COPY --from=build --chown=65532:65532 /out/var/lib /var/lib
ENV PII_VAULT_DATA_DIR=/var/lib/pii-vault
ENV PII_VAULT_KEEPER__PATHS=/var/lib/pii-vault-keeper
ENV PII_VAULT_ROOT_KEK__PROVIDER=file
ENV PII_VAULT_ROOT_KEK__PATH=/run/secrets/root-kek
ENV PII_VAULT_LISTEN__ADDRESS=0.0.0.0:7443
ENV PII_VAULT_TLS__CERTIFICATE=/etc/pii-vault/tls/server.pem
ENV PII_VAULT_TLS__PRIVATE_KEY=/etc/pii-vault/tls/server.key
USER 65532:65532
VOLUME ["/var/lib/pii-vault", "/var/lib/pii-vault-keeper"]
EXPOSE 7443
STOPSIGNAL SIGTERM
# There is no curl in the image: the binary asks its own operations port, which stays on the container's loopback.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["/usr/local/bin/pii-vault", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/pii-vault"]
CMD ["serve"]
