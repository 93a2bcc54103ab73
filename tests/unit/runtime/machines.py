"""Machines as data: what each answers to every question, and the profile that follows.

`READINGS` and `ENVIRONMENTS` have the same names. The values of files, of `sysctl` and of the Windows
functions are those of real machines of their kind, as their makers and kernels document them.
"""

from __future__ import annotations

from dataclasses import replace

from nexo_lsp.runtime.environment import Battery, Environment, Gpu, GpuBackend, Platform
from nexo_lsp.runtime.readings.readings import Readings
from tests.unit.runtime.making import GIB, apple, bare, cgroup, linux, mac, per_cpu, supply, windows

AVX2 = "fpu sse2 pni ssse3 sse4_1 sse4_2 avx f16c fma avx2 bmi2"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512_vnni"
AVX2_NAMES = frozenset({"sse2", "sse3", "ssse3", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "bmi2"})
AVX512_NAMES = AVX2_NAMES | {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}
ARM = "fp asimd evtstrm aes fphp asimdhp asimddp"
ARM_NAMES = frozenset({"neon", "fp16", "dotprod"})
APPLE_NAMES = ARM_NAMES
WINDOWS_AVX2 = ("sse2", "sse3", "ssse3", "sse4_1", "sse4_2", "avx", "avx2")

# The hybrid: 6 performance cores of two threads (0-11), 8 efficiency cores (12-19).
_HYBRID_SIBLINGS = {
    f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"
    for cpu in range(12)
}
_HYBRID = _HYBRID_SIBLINGS | {
    "/sys/devices/cpu_core/cpus": "0-11\n",
    "/sys/devices/cpu_atom/cpus": "12-19\n",
}

READINGS: dict[str, Readings] = {
    "linux desktop": linux(cores=8, smt=2, memory=(32 * GIB, 20 * GIB), flags=AVX512),
    "linux laptop on battery": linux(
        flags=AVX2,
        files=supply("AC", type="Mains", online=0)
        | supply("BAT0", type="Battery", status="Discharging", energy_now=20, energy_full=40, capacity=50),
    ),
    "linux laptop, two batteries, plugged in": linux(
        flags=AVX2,
        files=supply("AC", type="Mains", online=1)
        | supply("BAT0", type="Battery", status="Full", energy_now=20, energy_full=20)
        | supply("BAT1", type="Battery", status="Charging", energy_now=0, energy_full=20),
    ),
    "linux desktop with a mouse's battery": linux(
        flags=AVX2,
        files=supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity=5),
    ),
    "linux hybrid laptop": linux(cores=20, memory=(32 * GIB, 16 * GIB), flags=AVX2, files=_HYBRID),
    "linux hybrid, held to efficiency cores": linux(
        cores=20, usable=range(12, 20), flags=AVX2, files=_HYBRID
    ),
    "linux old laptop": linux(cores=2, memory=(4 * GIB, GIB), flags="sse2 pni ssse3 sse4_1"),
    "linux held to two processors": linux(cores=8, smt=2, usable=(0, 1, 2), flags=AVX2),
    "raspberry pi": linux("aarch64", memory=(8 * GIB, 6 * GIB), flags=ARM, files=per_cpu("cpufreq/cpuinfo_max_freq", [2_400_000] * 4)),
    "arm server": linux("aarch64", cores=64, memory=(256 * GIB, 200 * GIB), flags=f"{ARM} sve i8mm bf16"),
    "gpu server": linux(cores=48, smt=2, memory=(512 * GIB, 400 * GIB), flags=AVX512),
    "steam deck": linux(cores=4, smt=2, flags=AVX2, environ={"SteamDeck": "1"}),
    "docker with bounds": linux(
        cores=16, smt=2, memory=(64 * GIB, 60 * GIB), flags=AVX512, marks=["/.dockerenv"],
        files=cgroup(4 * GIB, GIB, "250000 100000"),
    ),
    "docker, a fifth of a processor": linux(
        cores=4, flags=AVX2, marks=["/.dockerenv"], files=cgroup(GIB, GIB // 2, "20000 100000")
    ),
    "kubernetes, control groups of version 1": linux(
        cores=8, memory=(64 * GIB, 60 * GIB), flags=AVX2, environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        files={
            "/proc/self/cgroup": "5:memory:/kubepods/pod1\n3:cpu,cpuacct:/kubepods/pod1\n",
            "/sys/fs/cgroup/memory/kubepods/pod1/memory.limit_in_bytes": str(8 * GIB),
            "/sys/fs/cgroup/memory/kubepods/pod1/memory.usage_in_bytes": str(2 * GIB),
            "/sys/fs/cgroup/cpu/kubepods/pod1/cpu.cfs_quota_us": "400000",
            "/sys/fs/cgroup/cpu/kubepods/pod1/cpu.cfs_period_us": "100000",
        },
    ),
    "podman": linux(flags=AVX2, marks=["/run/.containerenv"], environ={"container": "oci"}),
    "lxc": linux(flags=AVX2, files={"/proc/1/cgroup": "0::/lxc.payload.box\n"}),
    "flatpak": linux(flags=AVX2, environ={"FLATPAK_ID": "com.visualstudio.code"}, marks=["/.flatpak-info"]),
    "wsl": linux(
        cores=8, flags=AVX2, files={"/proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2\n"}
    ),
    "docker on a mac, emulated by Rosetta": linux(
        flags="", marks=["/.dockerenv"],
        files={"/proc/cpuinfo": f"vendor_id : VirtualApple\nmodel name : VirtualApple @ 2.50GHz processor\nflags : {AVX2}\n"},
    ),
    "freebsd": replace(linux(system="freebsd14", cores=4), battery=lambda: None),
    "mac, intel": mac(
        "x86_64",
        {
            "hw.physicalcpu": "4",
            "machdep.cpu.features": "FPU SSE2 SSE3 SSSE3 FMA SSE4.1 SSE4.2 AVX1.0 F16C",
            "machdep.cpu.leaf7_features": "RDWRFSGS BMI1 AVX2 BMI2",
        },
        battery=Battery(80, True),
    ),
    "mac, apple silicon": mac("arm64", apple(4, 4), battery=Battery(61, False)),
    "mac, apple silicon, large": mac("arm64", apple(12, 4), logical=16, memory=(128 * GIB, 90 * GIB)),
    "mac, two quick kinds of cores": mac(
        "arm64",
        apple(6, 12, hw__perflevel0__name="Super", hw__perflevel1__name="Performance"),
        logical=18,
    ),
    "mac, universal Python as Intel under Rosetta": mac(
        "x86_64", apple(8, 2, sysctl__proc_translated="1", machdep__cpu__features="SSE2 SSE3 SSSE3 SSE4.1 SSE4.2"),
        logical=10,
    ),
    "mac, Intel Python under Rosetta": mac(
        "x86_64", apple(4, 4, sysctl__proc_translated="1"), python="macosx-10.9-x86_64"
    ),
    "windows desktop": windows(classes=(0,) * 8, features=(*WINDOWS_AVX2, "avx512f")),
    "windows hybrid laptop": windows(
        classes=(1,) * 6 + (0,) * 8, features=WINDOWS_AVX2, logical=20, battery=Battery(15, False)
    ),
    "windows 8": windows(native=None, features=("sse2", "sse3"), logical=4, memory=(4 * GIB, GIB)),
    "windows on arm": windows(
        "ARM64", native="arm64", python="win-arm64", classes=(1,) * 12, features=("neon", "dotprod"), logical=12
    ),
    "windows on arm, Intel Python": windows(
        "AMD64", native="arm64", classes=(1,) * 12, features=("sse2", "sse3"), logical=12
    ),
    "android, termux": linux(
        "aarch64", cores=8, memory=(8 * GIB, 3 * GIB), flags=ARM,
        environ={"TERMUX_VERSION": "0.118.1", "ANDROID_ROOT": "/system"},
        files=per_cpu("cpu_capacity", [325] * 3 + [870] * 4 + [1024])
        | supply("battery", type="Battery", status="Discharging", capacity=18)
        | supply("usb", type="USB", online=0),
    ),
    "android, an app of Python 3.13": linux(
        "aarch64", system="android", cores=8, memory=(6 * GIB, 2 * GIB), flags=ARM,
        files=per_cpu("cpufreq/cpuinfo_max_freq", [1_804_800] * 4 + [2_419_200] * 3 + [2_841_600]),
    ),
    "android, nothing can be read": bare("android", "aarch64", logical=8),
    "iphone": mac(
        "iPhone15,2", apple(2, 4), system="ios", python="ios-17.0-arm64-iphoneos", logical=6,
        memory=(6 * GIB, 2 * GIB), battery=Battery(40, False),
    ),
    "ipad, a Python that calls itself darwin": mac(
        "iPad13,8", apple(4, 4), python="darwin-arm64", memory=(8 * GIB, 3 * GIB)
    ),
    "apple tv": mac("AppleTV14,1", apple(2, 3), system="tvos", logical=5, memory=(4 * GIB, 2 * GIB)),
    "browser": bare("emscripten", "wasm32"),
    "wasi": bare("wasi", "wasm32", logical=None),
    "set-top box": linux("aarch64", memory=(4 * GIB, 2 * GIB), flags=ARM, environ={"NEXO_PLATFORM": "console"}),
    "game console on Windows": replace(
        windows(classes=(0,) * 8, features=WINDOWS_AVX2), environ={"NEXO_PLATFORM": "console"}
    ),
}  # fmt: skip

LINUX, MACOS, WINDOWS = Platform.LINUX, Platform.MACOS, Platform.WINDOWS
_16 = {"total_bytes": 16 * GIB, "free_bytes": 8 * GIB}
_MAC_16 = {"total_bytes": 16 * GIB, "free_bytes": 6 * GIB}
_WIN_16 = {"total_bytes": 16 * GIB, "free_bytes": 7 * GIB}
_WINDOWS_NAMES = frozenset(WINDOWS_AVX2)


def profile(
    platform: Platform, architecture: str, cores: int, performance: int, **more: object
) -> Environment:
    return Environment(platform, architecture, physical_cores=cores, performance_cores=performance, **more)  # type: ignore[arg-type]


ENVIRONMENTS: dict[str, Environment] = {
    "linux desktop": profile(LINUX, "x86_64", 8, 8, simd=AVX512_NAMES, total_bytes=32 * GIB, free_bytes=20 * GIB),
    "linux laptop on battery": profile(
        LINUX, "x86_64", 4, 4, simd=AVX2_NAMES, **_16, battery=Battery(50, False)
    ),
    "linux laptop, two batteries, plugged in": profile(
        LINUX, "x86_64", 4, 4, simd=AVX2_NAMES, **_16, battery=Battery(50, True)
    ),
    "linux desktop with a mouse's battery": profile(LINUX, "x86_64", 4, 4, simd=AVX2_NAMES, **_16),
    "linux hybrid laptop": profile(
        LINUX, "x86_64", 14, 6, simd=AVX2_NAMES, total_bytes=32 * GIB, free_bytes=16 * GIB
    ),
    "linux hybrid, held to efficiency cores": profile(LINUX, "x86_64", 8, 8, simd=AVX2_NAMES, **_16),
    "linux old laptop": profile(
        LINUX, "x86_64", 2, 2, simd=frozenset({"sse2", "sse3", "ssse3", "sse4_1"}), total_bytes=4 * GIB, free_bytes=GIB
    ),
    "linux held to two processors": profile(LINUX, "x86_64", 2, 2, simd=AVX2_NAMES, **_16),
    "raspberry pi": profile(LINUX, "arm64", 4, 4, simd=ARM_NAMES, total_bytes=8 * GIB, free_bytes=6 * GIB),
    "arm server": profile(
        LINUX, "arm64", 64, 64, simd=ARM_NAMES | {"sve", "i8mm", "bf16"}, total_bytes=256 * GIB, free_bytes=200 * GIB
    ),
    "gpu server": profile(LINUX, "x86_64", 48, 48, simd=AVX512_NAMES, total_bytes=512 * GIB, free_bytes=400 * GIB),
    "steam deck": profile(LINUX, "x86_64", 4, 4, simd=AVX2_NAMES, **_16),
    "docker with bounds": profile(
        LINUX, "x86_64", 2, 2, simd=AVX512_NAMES, total_bytes=4 * GIB, free_bytes=3 * GIB, container="docker"
    ),
    "docker, a fifth of a processor": profile(
        LINUX, "x86_64", 1, 1, simd=AVX2_NAMES, total_bytes=GIB, free_bytes=GIB // 2, container="docker"
    ),
    "kubernetes, control groups of version 1": profile(
        LINUX, "x86_64", 4, 4, simd=AVX2_NAMES, total_bytes=8 * GIB, free_bytes=6 * GIB, container="kubernetes"
    ),
    "podman": profile(LINUX, "x86_64", 4, 4, simd=AVX2_NAMES, **_16, container="podman"),
    "lxc": profile(LINUX, "x86_64", 4, 4, simd=AVX2_NAMES, **_16, container="lxc"),
    "flatpak": profile(LINUX, "x86_64", 4, 4, simd=AVX2_NAMES, **_16, container="flatpak"),
    "wsl": profile(LINUX, "x86_64", 8, 8, simd=AVX2_NAMES, **_16, container="wsl"),
    "docker on a mac, emulated by Rosetta": profile(
        LINUX, "arm64", 4, 4, simd=AVX2_NAMES, **_16, container="docker", emulated=True
    ),
    "freebsd": profile(LINUX, "x86_64", 4, 4, **_16),
    "mac, intel": profile(MACOS, "x86_64", 4, 4, simd=AVX2_NAMES, **_MAC_16, battery=Battery(80, True)),
    "mac, apple silicon": profile(MACOS, "arm64", 8, 4, simd=APPLE_NAMES, **_MAC_16, battery=Battery(61, False)),
    "mac, apple silicon, large": profile(
        MACOS, "arm64", 16, 12, simd=APPLE_NAMES, total_bytes=128 * GIB, free_bytes=90 * GIB
    ),
    "mac, two quick kinds of cores": profile(MACOS, "arm64", 18, 18, simd=APPLE_NAMES, **_MAC_16),
    "mac, universal Python as Intel under Rosetta": profile(
        MACOS, "arm64", 10, 8, **_MAC_16, emulated=True,
        simd=frozenset({"sse2", "sse3", "ssse3", "sse4_1", "sse4_2"}),
    ),
    "mac, Intel Python under Rosetta": profile(MACOS, "arm64", 8, 4, **_MAC_16, emulated=True),
    "windows desktop": profile(WINDOWS, "x86_64", 8, 8, simd=_WINDOWS_NAMES | {"avx512f"}, **_WIN_16),
    "windows hybrid laptop": profile(
        WINDOWS, "x86_64", 14, 6, simd=_WINDOWS_NAMES, **_WIN_16, battery=Battery(15, False)
    ),
    "windows 8": profile(
        WINDOWS, "x86_64", 2, 2, simd=frozenset({"sse2", "sse3"}), total_bytes=4 * GIB, free_bytes=GIB
    ),
    "windows on arm": profile(WINDOWS, "arm64", 12, 12, simd=frozenset({"neon", "dotprod"}), **_WIN_16),
    "windows on arm, Intel Python": profile(
        WINDOWS, "arm64", 12, 12, simd=frozenset({"sse2", "sse3"}), **_WIN_16, emulated=True
    ),
    "android, termux": profile(
        Platform.ANDROID, "arm64", 8, 5, simd=ARM_NAMES, total_bytes=8 * GIB, free_bytes=3 * GIB, battery=Battery(18, False)
    ),
    "android, an app of Python 3.13": profile(
        Platform.ANDROID, "arm64", 8, 4, simd=ARM_NAMES, total_bytes=6 * GIB, free_bytes=2 * GIB
    ),
    "android, nothing can be read": profile(Platform.ANDROID, "arm64", 8, 8),
    "iphone": profile(
        Platform.IOS, "arm64", 6, 2, simd=APPLE_NAMES, total_bytes=6 * GIB, free_bytes=2 * GIB,
        battery=Battery(40, False), processes=False,
    ),
    "ipad, a Python that calls itself darwin": profile(
        Platform.IOS, "arm64", 8, 4, simd=APPLE_NAMES, total_bytes=8 * GIB, free_bytes=3 * GIB, processes=False
    ),
    "apple tv": profile(
        Platform.CONSOLE, "arm64", 5, 2, simd=APPLE_NAMES, total_bytes=4 * GIB, free_bytes=2 * GIB, processes=False
    ),
    "browser": profile(Platform.WEB, "wasm32", 1, 1, processes=False),
    "wasi": profile(Platform.WEB, "wasm32", 1, 1, processes=False),
    "set-top box": profile(
        Platform.CONSOLE, "arm64", 4, 4, simd=ARM_NAMES, total_bytes=4 * GIB, free_bytes=2 * GIB
    ),
    "game console on Windows": profile(
        Platform.CONSOLE, "x86_64", 8, 8, simd=_WINDOWS_NAMES, **_WIN_16, processes=False
    ),
}  # fmt: skip

GPUS: dict[str, tuple[Gpu, ...]] = {
    "gpu server": (
        Gpu(GpuBackend.CUDA, "NVIDIA H100 80GB HBM3", 79 * GIB, 80 * GIB),
        Gpu(GpuBackend.CUDA, "NVIDIA H100 80GB HBM3", 79 * GIB, 80 * GIB),
    ),
    "linux desktop": (Gpu(GpuBackend.VULKAN, "AMD Radeon RX 7800 XT", 15 * GIB, 16 * GIB),),
    "mac, apple silicon": (Gpu(GpuBackend.METAL, "Apple M2", 10 * GIB, 11 * GIB, True),),
    "mac, apple silicon, large": (Gpu(GpuBackend.METAL, "Apple M4 Max", 95 * GIB, 96 * GIB, True),),
    "windows desktop": (Gpu(GpuBackend.CUDA, "NVIDIA GeForce RTX 4070", 11 * GIB, 12 * GIB),),
    "iphone": (Gpu(GpuBackend.METAL, "Apple A16", 3 * GIB, 4 * GIB, True),),
}
"""What an installed llama.cpp that was built for it finds on some of them; none on the others."""
