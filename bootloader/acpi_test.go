package bootloader

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory"
)

// acpiTables writes the tables into guest memory and reads them back the way
// that a kernel finds them, from the RSDP on. It checks every checksum.
func acpiTables(t *testing.T, p *Platform) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	mem := testMemory(t, testRAM)
	gpa, err := writeACPI(mem, p)
	if err != nil {
		t.Fatal(err)
	}
	if gpa < 0xe0000 || gpa >= 0x100000 || gpa%16 != 0 {
		t.Fatalf("RSDP at %#x: a scan does not find it there", uint64(gpa))
	}
	root := read(t, mem, gpa, 36)
	if string(root[:8]) != "RSD PTR " || checksum(root[:20]) != 0 || checksum(root) != 0 || root[15] != 2 {
		t.Fatalf("RSDP % x", root)
	}
	get := func(gpa memory.GPA) []byte {
		if gpa%16 != 0 || gpa < 0xe0000 || gpa >= 0x100000 {
			t.Errorf("table at %#x", uint64(gpa))
		}
		size, err := mem.Uint32(gpa + 4)
		if err != nil {
			t.Fatal(err)
		}
		return read(t, mem, gpa, uint64(size))
	}
	tables := map[string][]byte{"XSDT": get(memory.GPA(le.Uint64(root[24:])))}
	for list := tables["XSDT"][36:]; len(list) > 0; list = list[8:] {
		table := get(memory.GPA(le.Uint64(list)))
		tables[string(table[:4])] = table
	}
	fadt := tables["FACP"]
	if le.Uint64(fadt[140:]) != uint64(le.Uint32(fadt[40:])) {
		t.Errorf("the two DSDT addresses differ")
	}
	tables["DSDT"] = get(memory.GPA(le.Uint64(fadt[140:])))
	for name, table := range tables {
		if string(table[:4]) != name || checksum(table) != 0 {
			t.Errorf("%s: signature %q, checksum %#x", name, table[:4], checksum(table))
		}
	}
	facsAddr := memory.GPA(le.Uint32(fadt[36:]))
	if facsAddr%64 != 0 {
		t.Errorf("FACS at %#x is not aligned to 64 bytes", uint64(facsAddr))
	}
	tables["FACS"] = get(facsAddr)
	return tables
}

func TestFADT(t *testing.T) {
	p := testPlatform()
	f := acpiTables(t, &p)["FACP"]
	if len(f) != 276 || f[8] != 6 || f[131] != 5 {
		t.Errorf("%d bytes of revision %d.%d, want the 276 of 6.5", len(f), f[8], f[131])
	}
	io := func(width, access byte, port uint16) []byte {
		return binary.LittleEndian.AppendUint64([]byte{1, width, 0, access}, uint64(port))
	}
	for _, field := range []struct {
		name string
		off  int
		want []byte
	}{
		{"SCI_INT", 46, []byte{9, 0}},
		{"SMI_CMD", 48, []byte{0, 0, 0, 0}},
		{"PM1a_EVT_BLK", 56, []byte{0, 6, 0, 0}},
		{"PM1a_CNT_BLK", 64, []byte{4, 6, 0, 0}},
		{"PM_TMR_BLK", 76, []byte{8, 6, 0, 0}},
		{"GPE0_BLK", 80, []byte{0x20, 6, 0, 0}},
		{"lengths", 88, []byte{4, 2, 0, 4, 4, 0}},
		{"CENTURY", 108, []byte{0x32}},
		{"IAPC_BOOT_ARCH", 109, []byte{5, 0}},
		{"Flags", 112, []byte{0x65, 5, 0, 0}},
		{"RESET_REG", 116, io(8, 1, 0xcf9)},
		{"RESET_VALUE", 128, []byte{6}},
		{"X_PM1a_EVT_BLK", 148, io(32, 2, 0x600)},
		{"X_PM1a_CNT_BLK", 172, io(16, 2, 0x604)},
		{"X_PM_TMR_BLK", 208, io(32, 3, 0x608)},
		{"X_GPE0_BLK", 220, io(32, 1, 0x620)},
	} {
		if got := f[field.off : field.off+len(field.want)]; !bytes.Equal(got, field.want) {
			t.Errorf("%s: % x, want % x", field.name, got, field.want)
		}
	}
}

func TestFADTOfALesserMachine(t *testing.T) {
	p := testPlatform()
	p.RTC.Port = 0
	p.Power.GPE0 = 0
	f := acpiTables(t, &p)["FACP"]
	if f[109]&(1<<5) == 0 || f[108] != 0 {
		t.Error("no RTC, and the FADT does not say so")
	}
	if f[92] != 0 || f[80] != 0 || f[220] != 0 {
		t.Error("no GPE block, and the FADT has one")
	}
}

func TestMADT(t *testing.T) {
	p := testPlatform()
	p.APICIDs = []uint32{0, 4, 254}
	want := []byte{
		0, 0, 0xe0, 0xfe, 0, 0, 0, 0,
		0, 8, 0, 0, 1, 0, 0, 0,
		0, 8, 1, 4, 1, 0, 0, 0,
		0, 8, 2, 254, 1, 0, 0, 0,
		1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0,
		2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0,
	}
	if got := acpiTables(t, &p)["APIC"][36:]; !bytes.Equal(got, want) {
		t.Errorf("MADT\n% x, want\n% x", got, want)
	}
}

func TestMCFG(t *testing.T) {
	p := testPlatform()
	want := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if got := acpiTables(t, &p)["MCFG"][36:]; !bytes.Equal(got, want) {
		t.Errorf("MCFG % x, want % x", got, want)
	}
}

// TestTablesWithIASL has the reference compiler disassemble the tables, compile
// the result without complaint, and arrive at the same bytes.
func TestTablesWithIASL(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		testenv.Lacks(t, "iasl not found: install the package acpica-tools")
	}
	full := testPlatform()
	bare := testPlatform()
	bare.Serial, bare.RTC, bare.Pvpanic = nil, Device{}, 0
	bare.PCI64, bare.PCIIO = memory.Range{}, PortRange{}
	for name, p := range map[string]*Platform{"full": &full, "bare": &bare} {
		for signature, table := range acpiTables(t, p) {
			t.Run(name+"/"+signature, func(t *testing.T) { roundTrip(t, iasl, table) })
		}
	}
}

func roundTrip(t *testing.T, iasl string, table []byte) {
	path := filepath.Join(t.TempDir(), "table")
	if err := os.WriteFile(path+".dat", table, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		out, err := exec.Command(iasl, args...).CombinedOutput()
		// Data tables compile without a count of warnings where
		// there are none.
		bad := strings.Contains(string(out), "Warning ") || strings.Contains(string(out), "Error ")
		if err != nil || bad {
			t.Fatalf("iasl %q: %v\n%s", args, err, out)
		}
	}
	run("-d", path+".dat")
	source, err := os.ReadFile(path + ".dsl")
	if err != nil {
		t.Fatal(err)
	}
	if s := strings.ToLower(string(source)); strings.Contains(s, "incorrect") || strings.Contains(s, "invalid") || strings.Contains(s, "unknown") {
		t.Errorf("the disassembler complains:\n%s", source)
	}
	run("-oa", path+".dsl")
	again, err := os.ReadFile(path + ".aml")
	if err != nil {
		t.Fatal(err)
	}
	// The compiler puts its own name and version into the header.
	if body := min(tableHeaderSize, len(table)); !bytes.Equal(again[body:], table[body:]) {
		t.Errorf("compiled again:\n% x, want\n% x", again, table)
	}
}
