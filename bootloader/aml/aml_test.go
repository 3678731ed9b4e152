package aml

import (
	"bytes"
	"testing"
)

func TestEncodings(t *testing.T) {
	tests := []struct {
		name string
		got  []byte
		want []byte
	}{
		{"zero", Integer(0), []byte{0}},
		{"one", Integer(1), []byte{1}},
		{"byte", Integer(0xff), []byte{0x0a, 0xff}},
		{"word", Integer(0x100), []byte{0x0b, 0, 1}},
		{"double word", Integer(0x10000), []byte{0x0c, 0, 0, 1, 0}},
		{"quad word", Integer(1 << 32), []byte{0x0e, 0, 0, 0, 0, 1, 0, 0, 0}},
		{"string", String("A"), []byte{0x0d, 'A', 0}},
		{"EISA ID", EISAID("PNP0A03"), []byte{0x0c, 0x41, 0xd0, 0x0a, 0x03}},
		{"one segment", Path("X"), []byte("X___")},
		{"two segments", Path(`\_SB.PCI0`), []byte("\\\x2e_SB_PCI0")},
		{"three segments", Path("A.B.C"), []byte("\x2f\x03A___B___C___")},
		{"name", Name("_BBN", Integer(0)), []byte("\x08_BBN\x00")},
		{"package", Package(Integer(5), Integer(0)), []byte{0x12, 0x05, 2, 0x0a, 5, 0}},
		{"buffer", Buffer([]byte{7}), []byte{0x11, 0x03, 1, 7}},
		{"method", Method("_STA", 2, true, Return(Arg(1))), []byte("\x14\x08_STA\x0a\xa4\x69")},
		{"notify", Notify(Path("X"), 0x80), []byte("\x86X___\x0a\x80")},
		{"UUID", UUID(0x33db4d5b, 0x1ff7, 0x401c, 0x9657, 0x7441c03dd766), []byte{
			0x11, 0x13, 0x0a, 0x10,
			0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40, 0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66,
		}},
		{"I/O ports", IO(0x3f8, 8), []byte{0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8}},
		{"interrupt", Interrupt(4), []byte{0x89, 6, 0, 3, 1, 4, 0, 0, 0}},
		{"memory", Memory32(0xe0000000, 0x100000), []byte{0x86, 9, 0, 1, 0, 0, 0, 0xe0, 0, 0, 0x10, 0}},
		{"bus window", BusWindow(0, 1), []byte{0x88, 13, 0, 2, 0x0c, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0}},
		{"resources", Resources(), []byte{0x11, 0x05, 0x0a, 2, 0x79, 0}},
	}
	for _, tt := range tests {
		if !bytes.Equal(tt.got, tt.want) {
			t.Errorf("%s: % x, want % x", tt.name, tt.got, tt.want)
		}
	}
}

// TestLengths tries the package length around each change of its own size.
func TestLengths(t *testing.T) {
	tests := []struct {
		body int
		want []byte
	}{
		{0, []byte{0x01}},
		{62, []byte{0x3f}},
		{63, []byte{0x41, 0x04}},                    // 65
		{4093, []byte{0x4f, 0xff}},                  // 4095
		{4094, []byte{0x81, 0x00, 0x01}},            // 4097
		{1<<20 - 4, []byte{0x8f, 0xff, 0xff}},       // 2^20 - 1
		{1<<20 - 3, []byte{0xc1, 0x00, 0x00, 0x01}}, // 2^20 + 1
	}
	for _, tt := range tests {
		got := sized(Term{scopeOp}, make(Term, tt.body))
		n := len(tt.want)
		if !bytes.Equal(got[1:1+n], tt.want) || len(got) != 1+n+tt.body {
			t.Errorf("body of %d bytes: length % x, want % x", tt.body, got[1:1+n], tt.want)
		}
	}
}
