package bootloader

import (
	"encoding/binary"
	"fmt"

	"github.com/godwit-vmm/godwit/memory"
)

// The names in the headers of our tables (ACPI 6.5 §5.2.6).
const (
	acpiOEM      = "GODWIT"
	acpiOEMTable = "GODWITVM"
	acpiCreator  = "GDWT"
)

const (
	tableHeaderSize = 36
	checksumOffset  = 9 // in a table header
	tableAlign      = 16
	facsAlign       = 64 // ACPI 6.5 §5.2.10
)

// acpiArea collects the tables that lie from acpiAddr on.
type acpiArea struct {
	content []byte
}

// reserve makes room at the next aligned address.
func (a *acpiArea) reserve(size, align int) memory.GPA {
	start := (len(a.content) + align - 1) &^ (align - 1)
	a.content = append(a.content, make([]byte, start+size-len(a.content))...)
	return acpiAddr + memory.GPA(start)
}

// put adds a table and returns its address.
func (a *acpiArea) put(table []byte, align int) memory.GPA {
	gpa := a.reserve(len(table), align)
	copy(a.content[gpa-acpiAddr:], table)
	return gpa
}

// writeACPI puts the ACPI tables (ACPI 6.5 §5.2) into guest memory and returns
// the address of the RSDP, from which the kernel finds the others.
func writeACPI(mem *memory.Guest, p *Platform) (memory.GPA, error) {
	var a acpiArea
	// The RSDP comes first, where a scan for it begins, although it is
	// complete only when the others are placed.
	rsdpAddr := a.reserve(rsdpSize, tableAlign)
	facsAddr := a.put(facs(), facsAlign)
	dsdtAddr := a.put(dsdt(p), tableAlign)
	xsdtAddr := a.put(xsdt(
		a.put(fadt(p, facsAddr, dsdtAddr), tableAlign),
		a.put(madt(p), tableAlign),
		a.put(mcfg(p), tableAlign),
	), tableAlign)
	copy(a.content[rsdpAddr-acpiAddr:], rsdp(xsdtAddr))
	if uint64(len(a.content)) > uint64(acpiEnd-acpiAddr) {
		return 0, fmt.Errorf("%d bytes of tables: the limit is %d", len(a.content), acpiEnd-acpiAddr)
	}
	return rsdpAddr, mem.Write(acpiAddr, a.content)
}

// table puts the standard header before the body of a table.
func table(signature string, revision byte, body []byte) []byte {
	le := binary.LittleEndian
	t := make([]byte, 0, tableHeaderSize+len(body))
	t = append(t, signature...)
	t = le.AppendUint32(t, uint32(tableHeaderSize+len(body)))
	t = append(t, revision, 0)
	t = append(t, acpiOEM...)
	t = append(t, acpiOEMTable...)
	t = le.AppendUint32(t, 1) // OEM revision
	t = append(t, acpiCreator...)
	t = le.AppendUint32(t, 1) // creator revision
	t = append(t, body...)
	t[checksumOffset] = checksum(t)
	return t
}

// checksum is the byte that makes the sum of all bytes zero.
func checksum(p []byte) byte {
	var sum byte
	for _, b := range p {
		sum += b
	}
	return -sum
}

const rsdpSize = 36

// rsdp is the root pointer (ACPI 6.5 §5.2.5.3). Its first checksum covers the
// part that ACPI 1.0 had.
func rsdp(xsdt memory.GPA) []byte {
	const revision, size1, checksum1, checksum2 = 2, 20, 8, 32
	le := binary.LittleEndian
	t := make([]byte, 0, rsdpSize)
	t = append(t, "RSD PTR "...)
	t = append(t, 0)
	t = append(t, acpiOEM...)
	t = append(t, revision)
	t = le.AppendUint32(t, 0) // no RSDT
	t = le.AppendUint32(t, rsdpSize)
	t = le.AppendUint64(t, uint64(xsdt))
	t = append(t, 0, 0, 0, 0) // second checksum, reserved
	t[checksum1] = checksum(t[:size1])
	t[checksum2] = checksum(t)
	return t
}

// xsdt is the list of the other tables (ACPI 6.5 §5.2.8).
func xsdt(tables ...memory.GPA) []byte {
	var body []byte
	for _, gpa := range tables {
		body = binary.LittleEndian.AppendUint64(body, uint64(gpa))
	}
	return table("XSDT", 1, body)
}

// madt describes the interrupt controllers (ACPI 6.5 §5.2.12). There is no
// 8259 and no timer on interrupt 0, so the only ISA interrupt that is out of
// the ordinary is the SCI, by being level-triggered.
func madt(p *Platform) []byte {
	const (
		entryLAPIC, entryIOAPIC, entryOverride = 0, 1, 2

		enabled             = 1
		activeHigh, byLevel = 1 << 0, 3 << 2
	)
	le := binary.LittleEndian
	body := le.AppendUint32(nil, uint32(p.LAPIC))
	body = le.AppendUint32(body, 0) // flags: no 8259
	for uid, id := range p.APICIDs {
		body = append(body, entryLAPIC, 8, byte(uid), byte(id))
		body = le.AppendUint32(body, enabled)
	}
	body = append(body, entryIOAPIC, 12, 0, 0)
	body = le.AppendUint32(body, uint32(p.IOAPIC))
	body = le.AppendUint32(body, 0) // first GSI
	body = append(body, entryOverride, 10, 0, byte(p.Power.SCI))
	body = le.AppendUint32(body, uint32(p.Power.SCI))
	body = le.AppendUint16(body, activeHigh|byLevel)
	return table("APIC", 6, body)
}

// mcfg says where the memory-mapped PCI configuration space is (PCI Firmware
// Specification 3.3 §4.1.2).
func mcfg(p *Platform) []byte {
	le := binary.LittleEndian
	body := make([]byte, 8) // reserved
	body = le.AppendUint64(body, uint64(p.ECAM.Start))
	body = le.AppendUint16(body, 0) // segment
	body = append(body, 0, p.lastBus())
	body = le.AppendUint32(body, 0) // reserved
	return table("MCFG", 1, body)
}
