# One image, roles by command: gateway, control, worker, migrate.
FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY meta_agent meta_agent
COPY tools tools
COPY pipelines pipelines
COPY gateway gateway
COPY policies policies
COPY storage storage
RUN python -m venv /opt/meta-agent \
 && /opt/meta-agent/bin/pip install --no-cache-dir -r requirements.lock \
 && /opt/meta-agent/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/meta-agent meta-agent
COPY --from=build /opt/meta-agent /opt/meta-agent
ENV PATH=/opt/meta-agent/bin:$PATH \
    META_AGENT_HOME=/var/lib/meta-agent \
    META_AGENT__GATEWAY__HOST=0.0.0.0 \
    META_AGENT__CONTROL__HOST=0.0.0.0 \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/meta-agent
VOLUME /var/lib/meta-agent
EXPOSE 8080 8081
ENTRYPOINT ["meta-agent"]
CMD ["--help"]
