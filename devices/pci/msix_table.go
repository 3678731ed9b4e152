package pci

import "encoding/binary"

// msixTable serves the BAR with the table and the pending bits.
type msixTable MSIX

// Read serves any access within one entry; what is beyond reads as zero.
func (t *msixTable) Read(offset uint64, data []byte) {
	m := (*MSIX)(t)
	clear(data)
	if offset >= m.pending {
		m.readPending(offset-m.pending, data)
		return
	}
	if n := offset / msixEntry; n < uint64(len(m.vectors)) {
		entry := m.vectors[n].bytes()
		copy(data, entry[offset%msixEntry:])
	}
}

func (v *vector) bytes() (entry [msixEntry]byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	le := binary.LittleEndian
	le.PutUint64(entry[msixAddress:], v.address)
	le.PutUint32(entry[msixData:], v.data)
	if v.masked {
		entry[msixControl] = msixMasked
	}
	return entry
}

func (m *MSIX) readPending(offset uint64, data []byte) {
	for i := range data {
		for bit := range 8 {
			n := 8*(offset+uint64(i)) + uint64(bit)
			if n >= uint64(len(m.vectors)) {
				return
			}
			v := &m.vectors[n]
			v.mu.Lock()
			if v.pending {
				data[i] |= 1 << bit
			}
			v.mu.Unlock()
		}
	}
}

// Write takes aligned 32 and 64-bit writes to the table; others are undefined
// (§6.8.2) and dropped. The pending bits are read-only.
func (t *msixTable) Write(offset uint64, data []byte) {
	m := (*MSIX)(t)
	n := offset / msixEntry
	if offset >= m.pending || n >= uint64(len(m.vectors)) {
		return
	}
	size := uint64(len(data))
	if size != 4 && size != 8 || offset%size != 0 {
		return
	}
	v := &m.vectors[n]
	v.mu.Lock()
	defer v.mu.Unlock()
	before := v.message()
	for i := uint64(0); i < size; i += 4 {
		v.set(offset%msixEntry+i, binary.LittleEndian.Uint32(data[i:]))
	}
	// A guest may change the message only while the vector is masked. One
	// that does not gets the halves as they come.
	m.apply(int(n), v, before != v.message())
}

func (v *vector) set(field uint64, word uint32) {
	switch field {
	case msixAddress:
		v.address = v.address>>32<<32 | uint64(word&^3)
	case msixUpper:
		v.address = v.address&0xffff_ffff | uint64(word)<<32
	case msixData:
		v.data = word
	case msixControl:
		v.masked = word&msixMasked != 0
	}
}
