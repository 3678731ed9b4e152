package snapshot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

const stateMagic = "godwitST"

// entrySize is the size of an entry of the section table.
const entrySize = 64

// Section is a named part of the state. What is in it is its owner's.
type Section struct {
	Name string
	Data []byte
}

// seal is what the state says of the manifest.
type seal struct {
	id           id
	manifestSize uint32
	manifestCRC  uint32
}

// state is the decoded file.
type state struct {
	seal
	sections []Section
}

// checkSections refuses what decodeState would not read.
func checkSections(sections []Section) error {
	if len(sections) > MaxSections {
		return fmt.Errorf("%d sections of state: want at most %d", len(sections), MaxSections)
	}
	seen := make(map[string]bool, len(sections))
	total := headerSize + entrySize*len(sections)
	for _, s := range sections {
		if s.Name == "" || len(s.Name) > MaxNameLength || bytes.IndexByte([]byte(s.Name), 0) >= 0 {
			return fmt.Errorf("name of a section of state %.64q: want 1 to %d bytes without zeros", s.Name, MaxNameLength)
		}
		if seen[s.Name] {
			return fmt.Errorf("two sections of state named %q", s.Name)
		}
		seen[s.Name] = true
		if len(s.Data) > MaxSectionSize {
			return fmt.Errorf("section %q of state has %d bytes: want at most %d", s.Name, len(s.Data), MaxSectionSize)
		}
		total += len(s.Data)
	}
	if total > MaxStateSize {
		return fmt.Errorf("state has %d bytes: want at most %d", total, MaxStateSize)
	}
	return nil
}

// writeState writes the file. The sections have passed checkSections.
func writeState(w io.Writer, k seal, sections []Section) error {
	head := make([]byte, headerSize, headerSize+entrySize*len(sections))
	size := cap(head)
	for _, s := range sections {
		var entry [entrySize]byte
		copy(entry[:MaxNameLength], s.Name)
		binary.LittleEndian.PutUint64(entry[48:], uint64(len(s.Data)))
		binary.LittleEndian.PutUint32(entry[60:], checksum(s.Data))
		head = append(head, entry[:]...)
		size += len(s.Data)
	}
	putHeader(head, stateMagic, k.id)
	binary.LittleEndian.PutUint32(head[12:], uint32(len(sections)))
	binary.LittleEndian.PutUint32(head[32:], k.manifestSize)
	binary.LittleEndian.PutUint32(head[36:], k.manifestCRC)
	binary.LittleEndian.PutUint64(head[40:], uint64(size))
	sealHeader(head[:headerSize], head[headerSize:])
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, s := range sections {
		if _, err := w.Write(s.Data); err != nil {
			return err
		}
	}
	return nil
}

// decodeState checks every byte of the file. The sections are parts of p.
func decodeState(p []byte) (*state, error) {
	if err := checkHeader(p, stateMagic); err != nil {
		return nil, err
	}
	count := int(binary.LittleEndian.Uint32(p[12:]))
	if count > MaxSections {
		return nil, fmt.Errorf("%w: %d sections, want at most %d", ErrDamaged, count, MaxSections)
	}
	body := headerSize + entrySize*count
	if len(p) < body {
		return nil, fmt.Errorf("%w: %d bytes, less than its table of %d sections", ErrDamaged, len(p), count)
	}
	table := p[headerSize:body]
	if err := checkSeal(p[:headerSize], table); err != nil {
		return nil, err
	}
	if size := binary.LittleEndian.Uint64(p[40:]); size != uint64(len(p)) {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrDamaged, len(p), size)
	}
	if !zero(p[48:headerCRC]) {
		return nil, fmt.Errorf("%w: unused bytes of the header are not zero", ErrDamaged)
	}
	s := &state{sections: make([]Section, count)}
	s.id = id(p[headerID:])
	s.manifestSize = binary.LittleEndian.Uint32(p[32:])
	s.manifestCRC = binary.LittleEndian.Uint32(p[36:])
	rest := p[body:]
	for i := range s.sections {
		var err error
		if s.sections[i], rest, err = decodeSection(table[entrySize*i:][:entrySize], rest); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes behind the last section", ErrDamaged, len(rest))
	}
	if err := checkSections(s.sections); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return s, nil
}

// decodeSection takes the section of a table entry off the front of body.
func decodeSection(entry, body []byte) (s Section, rest []byte, err error) {
	name, padding, _ := bytes.Cut(entry[:MaxNameLength], []byte{0})
	if !zero(padding) || !zero(entry[56:60]) {
		return s, nil, fmt.Errorf("%w: entry of section %q is not clean", ErrDamaged, name)
	}
	s.Name = string(name)
	size := binary.LittleEndian.Uint64(entry[48:])
	if size > MaxSectionSize || size > uint64(len(body)) {
		return s, nil, fmt.Errorf("%w: section %q has %d bytes, of which %d are there", ErrDamaged, name, size, len(body))
	}
	s.Data = body[:size:size]
	if want, got := binary.LittleEndian.Uint32(entry[60:]), checksumOnce(s.Data); got != want {
		return s, nil, fmt.Errorf("%w: checksum of section %q is %#08x, want %#08x", ErrDamaged, name, got, want)
	}
	return s, body[size:], nil
}
