package bootloader

import (
	"encoding/binary"

	"github.com/godwit-vmm/godwit/memory"
)

// The lengths of the fixed hardware blocks in ports (ACPI 6.5 §4.8.3).
const (
	pm1EventLen   = 4
	pm1ControlLen = 2
	timerLen      = 4
	gpe0Len       = 4
)

// The parts of the FADT that this machine has something to say in: offsets
// from the start of the table (ACPI 6.5 §5.2.9).
const (
	fadtSize         = 276
	fadtFACS         = 36
	fadtDSDT         = 40
	fadtSCI          = 46
	fadtPM1Event     = 56
	fadtPM1Control   = 64
	fadtTimer        = 76
	fadtGPE0         = 80
	fadtPM1EventLen  = 88
	fadtPM1CtrlLen   = 89
	fadtTimerLen     = 91
	fadtGPE0Len      = 92
	fadtC2Latency    = 96
	fadtC3Latency    = 98
	fadtCentury      = 108
	fadtBootArch     = 109
	fadtFlags        = 112
	fadtResetReg     = 116
	fadtResetValue   = 128
	fadtMinor        = 131
	fadtXDSDT        = 140
	fadtXPM1Event    = 148
	fadtXPM1Control  = 172
	fadtXTimer       = 208
	fadtXGPE0        = 220
	fadtRevision     = 6
	fadtMinorVersion = 5
)

// IA-PC boot architecture flags (ACPI 6.5 §5.2.9.3). That the bit for an 8042
// is absent tells the kernel to leave keyboard and mouse alone.
const (
	bootLegacyDevices = 1 << 0 // there are UARTs
	bootNoVGA         = 1 << 2
	bootNoCMOSRTC     = 1 << 5
)

// Fixed feature flags (ACPI 6.5 §5.2.9, table 5.10). That the bit of the power
// button is absent makes it the fixed feature button of PM1_STS.
const (
	flagWBINVD        = 1 << 0
	flagC1            = 1 << 2
	flagNoSleepButton = 1 << 5
	flagNoFixedRTC    = 1 << 6 // the RTC alarm is not in PM1_STS
	flagTimer32       = 1 << 8
	flagResetReg      = 1 << 10
)

// Access sizes of a generic address (ACPI 6.5 §5.2.3.2).
const (
	accessByte  = 1
	accessWord  = 2
	accessDWord = 3
)

// rtcCentury is the index at which CMOS clocks keep the century.
const rtcCentury = 0x32

// noCState is a latency above the limit for C2 and C3: they are not there.
const noCState = 0xffff

// fadt describes the fixed hardware. SMI_CMD stays zero, which says that the
// machine is in ACPI mode from the start.
func fadt(p *Platform, facs, dsdt memory.GPA) []byte {
	le := binary.LittleEndian
	var f [fadtSize]byte
	le.PutUint32(f[fadtFACS:], uint32(facs))
	le.PutUint32(f[fadtDSDT:], uint32(dsdt))
	le.PutUint64(f[fadtXDSDT:], uint64(dsdt))
	le.PutUint16(f[fadtSCI:], p.Power.SCI)

	f[fadtPM1EventLen], f[fadtPM1CtrlLen], f[fadtTimerLen] = pm1EventLen, pm1ControlLen, timerLen
	putBlock(&f, fadtPM1Event, fadtXPM1Event, p.Power.PM1Event, pm1EventLen, accessWord)
	putBlock(&f, fadtPM1Control, fadtXPM1Control, p.Power.PM1Control, pm1ControlLen, accessWord)
	putBlock(&f, fadtTimer, fadtXTimer, p.Power.Timer, timerLen, accessDWord)
	if p.Power.GPE0 != 0 {
		f[fadtGPE0Len] = gpe0Len
		putBlock(&f, fadtGPE0, fadtXGPE0, p.Power.GPE0, gpe0Len, accessByte)
	}

	le.PutUint16(f[fadtC2Latency:], noCState)
	le.PutUint16(f[fadtC3Latency:], noCState)
	boot := uint16(bootLegacyDevices | bootNoVGA)
	if p.RTC.Port == 0 {
		boot |= bootNoCMOSRTC
	} else {
		f[fadtCentury] = rtcCentury
	}
	le.PutUint16(f[fadtBootArch:], boot)
	le.PutUint32(f[fadtFlags:], flagWBINVD|flagC1|flagNoSleepButton|flagNoFixedRTC|flagTimer32|flagResetReg)
	putAddress(f[fadtResetReg:], p.Power.ResetPort, 1, accessByte)
	f[fadtResetValue] = p.Power.ResetValue
	f[fadtMinor] = fadtMinorVersion
	return table("FACP", fadtRevision, f[tableHeaderSize:])
}

// putBlock fills both forms of a register block's address. Kernels complain
// where they differ.
func putBlock(f *[fadtSize]byte, off, xoff int, port uint16, ports, access byte) {
	binary.LittleEndian.PutUint32(f[off:], uint32(port))
	putAddress(f[xoff:], port, ports, access)
}

// putAddress is a generic address structure for I/O ports.
func putAddress(dst []byte, port uint16, ports, access byte) {
	const spaceIO = 1
	dst[0], dst[1], dst[2], dst[3] = spaceIO, ports*8, 0, access
	binary.LittleEndian.PutUint64(dst[4:], uint64(port))
}

// facs is where firmware and kernel would meet on wake-up from sleep and for
// the global lock; the machine uses neither (ACPI 6.5 §5.2.10).
func facs() []byte {
	const size, version, versionOffset = 64, 2, 32
	f := make([]byte, size)
	copy(f, "FACS")
	binary.LittleEndian.PutUint32(f[4:], size)
	f[versionOffset] = version
	return f
}
