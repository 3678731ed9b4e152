// Package aml assembles ACPI Machine Language (ACPI 6.5 §20.2): each function
// is one construct of ASL, takes its parts already encoded and returns its
// encoding. A table is a nested expression:
//
//	aml.Scope(`\_SB`,
//		aml.Device("COM1",
//			aml.Name("_HID", aml.EISAID("PNP0501")),
//			aml.Name("_CRS", aml.Resources(aml.IO(0x3f8, 8), aml.Interrupt(4)))))
//
// The names and values are the program's own, so there are no errors to
// return: a malformed name gives malformed AML, which a disassembler finds.
package aml

import (
	"encoding/binary"
	"strings"
)

// Term is one or several encoded terms.
type Term []byte

// The first bytes of the constructs below; those of two bytes begin with
// extOpPrefix.
const (
	zeroOp         = 0x00
	oneOp          = 0x01
	nameOp         = 0x08
	bytePrefix     = 0x0a
	wordPrefix     = 0x0b
	dwordPrefix    = 0x0c
	stringPrefix   = 0x0d
	qwordPrefix    = 0x0e
	scopeOp        = 0x10
	bufferOp       = 0x11
	packageOp      = 0x12
	methodOp       = 0x14
	dualPrefix     = 0x2e
	multiPrefix    = 0x2f
	extOpPrefix    = 0x5b
	argOp          = 0x68
	andOp          = 0x7b
	notifyOp       = 0x86
	orOp           = 0x7d
	deviceOp       = 0x82 // behind extOpPrefix
	createDWordOp  = 0x8a
	equalOp        = 0x93
	ifOp           = 0xa0
	elseOp         = 0xa1
	returnOp       = 0xa4
	segmentLength  = 4
	maxOneByteSize = 0x3f
)

// Scope adds terms to an existing part of the namespace.
func Scope(path string, terms ...Term) Term {
	return sized(Term{scopeOp}, Path(path), join(terms))
}

// Device declares a device.
func Device(name string, terms ...Term) Term {
	return sized(Term{extOpPrefix, deviceOp}, Path(name), join(terms))
}

// Name declares an object with a value.
func Name(path string, value Term) Term {
	return join([]Term{{nameOp}, Path(path), value})
}

// Method declares a control method of 0 to 7 arguments. Serialized keeps a
// second caller out while it runs; a method that declares names needs that.
func Method(name string, args int, serialized bool, terms ...Term) Term {
	flags := byte(args & 7)
	if serialized {
		flags |= 1 << 3
	}
	return sized(Term{methodOp}, Path(name), Term{flags}, join(terms))
}

// If runs terms where the condition is not zero.
func If(condition Term, terms ...Term) Term {
	return sized(Term{ifOp}, condition, join(terms))
}

// Else follows an If.
func Else(terms ...Term) Term { return sized(Term{elseOp}, join(terms)) }

// Return ends a method with a value.
func Return(value Term) Term { return append(Term{returnOp}, value...) }

// Notify tells the driver of a device that something happened to it.
func Notify(device Term, value uint64) Term {
	return join([]Term{{notifyOp}, device, Integer(value)})
}

// Equal compares two numbers or buffers.
func Equal(a, b Term) Term { return join([]Term{{equalOp}, a, b}) }

// NoTarget is the target of an operation whose value alone is wanted.
func NoTarget() Term { return Term{zeroOp} }

// And is a & b, which it also stores in target.
func And(a, b, target Term) Term { return join([]Term{{andOp}, a, b, target}) }

// Or is a | b, which it also stores in target.
func Or(a, b, target Term) Term { return join([]Term{{orOp}, a, b, target}) }

// CreateDWordField names the 32-bit field at a byte offset of a buffer.
func CreateDWordField(buffer Term, offset uint64, name string) Term {
	return join([]Term{{createDWordOp}, buffer, Integer(offset), Path(name)})
}

// Arg is argument n of the method, 0 to 6.
func Arg(n int) Term { return Term{argOp + byte(n)} }

// Integer is a constant in its shortest encoding.
func Integer(x uint64) Term {
	le := binary.LittleEndian
	switch {
	case x == 0:
		return Term{zeroOp}
	case x == 1:
		return Term{oneOp}
	case x < 1<<8:
		return Term{bytePrefix, byte(x)}
	case x < 1<<16:
		return le.AppendUint16(Term{wordPrefix}, uint16(x))
	case x < 1<<32:
		return le.AppendUint32(Term{dwordPrefix}, uint32(x))
	}
	return le.AppendUint64(Term{qwordPrefix}, x)
}

// String is a constant of ASCII characters.
func String(s string) Term {
	return append(append(Term{stringPrefix}, s...), 0)
}

// Buffer is a constant of bytes.
func Buffer(p []byte) Term {
	return sized(Term{bufferOp}, Integer(uint64(len(p))), p)
}

// Package is a list of at most 255 values.
func Package(values ...Term) Term {
	return sized(Term{packageOp}, Term{byte(len(values))}, join(values))
}

// EISAID is a compressed seven-character device ID such as PNP0A03: three
// letters of five bits and four hexadecimal digits, most significant first
// (ACPI 6.5 §19.6.37).
func EISAID(id string) Term {
	var x uint32
	for i, c := range []byte(id) {
		switch {
		case i < 3:
			x = x<<5 | uint32(c-'A'+1)&0x1f
		case c <= '9':
			x = x<<4 | uint32(c-'0')
		default:
			x = x<<4 | uint32(c-'A'+10)&0xf
		}
	}
	var p [4]byte
	binary.BigEndian.PutUint32(p[:], x)
	// Always a double word, as a shorter integer would not be an ID.
	return append(Term{dwordPrefix}, p[:]...)
}

// UUID is the buffer that ASL's ToUUID makes of a UUID given as its five
// groups: the first three are stored little-endian (ACPI 6.5 §19.6.142).
func UUID(a uint32, b, c, d uint16, e uint64) Term {
	p := binary.LittleEndian.AppendUint32(nil, a)
	p = binary.LittleEndian.AppendUint16(p, b)
	p = binary.LittleEndian.AppendUint16(p, c)
	p = binary.BigEndian.AppendUint16(p, d)
	var node [8]byte
	binary.BigEndian.PutUint64(node[:], e)
	return Buffer(append(p, node[2:]...))
}

// Path is the name of an object: segments of up to four characters between
// dots, after a backslash for the root (ACPI 6.5 §20.2.2).
func Path(path string) Term {
	var t Term
	if rest, ok := strings.CutPrefix(path, `\`); ok {
		t, path = append(t, '\\'), rest
	}
	segments := strings.Split(path, ".")
	switch len(segments) {
	case 1:
	case 2:
		t = append(t, dualPrefix)
	default:
		t = append(t, multiPrefix, byte(len(segments)))
	}
	for _, s := range segments {
		// Short names are padded with underscores.
		t = append(t, (s + "____")[:segmentLength]...)
	}
	return t
}

// sized puts the length of the parts between them and the opcode, in one to
// four bytes; the length counts its own bytes (ACPI 6.5 §20.2.4).
func sized(op Term, parts ...Term) Term {
	body := join(parts)
	if n := len(body) + 1; n <= maxOneByteSize {
		return join([]Term{op, {byte(n)}, body})
	}
	// The first byte has the number of bytes behind it and the lowest four
	// bits, each following byte eight more.
	extra := 1
	for len(body)+1+extra >= 1<<(4+8*extra) {
		extra++
	}
	n := len(body) + 1 + extra
	length := Term{byte(extra<<6 | n&0xf)}
	for i := range extra {
		length = append(length, byte(n>>(4+8*i)))
	}
	return join([]Term{op, length, body})
}

func join(terms []Term) Term {
	var all Term
	for _, t := range terms {
		all = append(all, t...)
	}
	return all
}
