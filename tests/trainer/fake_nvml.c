/* An NVML that says what a file says: "name value" lines, read anew at every call. FAKE_NVML_STATE names the file.
   A value below zero is an error: -15 returns NVML_ERROR_GPU_IS_LOST. Compiled by tests/trainer/conftest.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
struct utilisation { unsigned gpu, memory; };
struct memory { u64 total, free, used; };
struct event { void *device; u64 type, data; unsigned gpu_instance, compute_instance; };

static u64 xids_told;

static long long said(const char *name) {
    char key[64];
    long long value;
    FILE *file = fopen(getenv("FAKE_NVML_STATE"), "r");
    if (!file) return -999;
    while (fscanf(file, "%63s %lld", key, &value) == 2)
        if (!strcmp(key, name)) { fclose(file); return value; }
    fclose(file);
    return -3; /* NVML_ERROR_NOT_SUPPORTED */
}

#define ANSWER(name, place, unit) \
    long long value = said(name); \
    if (value < 0) return (int)-value; \
    *(place) = (unit)value; \
    return 0

int nvmlInitWithFlags(unsigned flags) { (void)flags; long long value = said("init"); return value < 0 ? (int)-value : 0; }
const char *nvmlErrorString(int code) { (void)code; return "as the test said"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (strncmp(uuid, "GPU-", 4)) return 6; /* NVML_ERROR_NOT_FOUND */
    *device = &xids_told;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, struct utilisation *rates) {
    (void)device; rates->memory = 0;
    ANSWER("utilisation", &rates->gpu, unsigned);
}
int nvmlDeviceGetMemoryInfo(void *device, struct memory *info) {
    (void)device; info->total = 24ull << 30; info->free = 0;
    ANSWER("memory_used", &info->used, u64);
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { (void)device; ANSWER("power", milliwatts, unsigned); }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
    (void)device; (void)sensor;
    ANSWER("temperature", celsius, unsigned);
}
int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, u64 *count) {
    (void)device;
    if (type != 1 || counter != 0) return 2; /* only uncorrected, volatile */
    ANSWER("uncorrected", count, u64);
}
int nvmlDeviceGetCurrentClocksEventReasons(void *device, u64 *reasons) { (void)device; ANSWER("reasons", reasons, u64); }
int nvmlEventSetCreate(void **set) { *set = &xids_told; return 0; }
int nvmlDeviceRegisterEvents(void *device, u64 types, void *set) { (void)device; (void)set; return types == 8 ? 0 : 2; }
int nvmlEventSetWait_v2(void *set, struct event *event, unsigned milliseconds) {
    (void)set; (void)milliseconds;
    long long value = said("xid");
    if (value < 0 || (u64)value == xids_told) return 10; /* NVML_ERROR_TIMEOUT */
    xids_told = (u64)value;
    memset(event, 0, sizeof *event);
    event->type = 8;
    event->data = (u64)value;
    return 0;
}
