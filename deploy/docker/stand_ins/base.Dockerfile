# Stands in for the public base images in compose-smoke: Debian with Python, this machine's CA and its local wheels.
FROM scratch
ADD rootfs.tar /
COPY ca.crt /etc/ssl/certs/ca-certificates.crt
COPY wheels /wheels
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    PIP_FIND_LINKS=/wheels \
    PIP_DISABLE_PIP_VERSION_CHECK=1
