# A server of a trained network. Not tried with an engine; its steps were run by hand.
#
#   docker build -t t2t-serve .
#   docker run --rm -p 8000:8000 -e T2T_VIT_API_KEY=... -v "$PWD/runs/FOLDER:/model:ro" t2t-serve
#
# --build-arg PIP_EXTRA_INDEX_URL=... adds an index, such as PyTorch's of wheels without CUDA, which are smaller;
# --build-arg EXTRAS=serve,onnx,openvino serves OpenVINO's files too. Further flags of the server follow the image's name.
FROM python:3.12-slim

ARG PIP_EXTRA_INDEX_URL
ARG EXTRAS=serve,onnx
WORKDIR /t2t_vit
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" \
    && useradd --create-home --uid 1000 server
USER 1000
WORKDIR /home/server

EXPOSE 8000
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
ENTRYPOINT ["t2t-vit", "serve", "--host", "0.0.0.0", "--checkpoint", "/model"]
