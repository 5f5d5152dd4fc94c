#!/bin/sh
# The browser tests drive Debian's Chromium, best its headless shell. Install it when none is there and we may.
for known in chromium-headless-shell chromium; do command -v $known >/dev/null 2>&1 && exit 0; done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "Installing Chromium for the browser tests ..."
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  for known in chromium-headless-shell chromium; do apt-get install -y -qq $known fonts-noto-core >/dev/null && exit 0; done
fi
echo "No Chromium here, so the browser tests will be skipped. To run them: sudo apt install chromium"
