# A detector as a service on a CPU: only what an exported file needs, no torch. From the folder of this file:
#   docker build -t boxwright .
#   docker run --rm -p 8000:8000 -v "$PWD/model.onnx:/model.onnx:ro" boxwright
FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir -c constraints.txt ".[serve]"

FROM python:3.13-slim
COPY --from=build /venv /venv
RUN useradd --system --no-create-home --uid 10001 boxwright
USER 10001
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["boxwright", "serve"]
CMD ["/model.onnx", "--host", "0.0.0.0"]
