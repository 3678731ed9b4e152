package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Commit finishes the snapshot: when it returns nil, all of it is on the disk and
// at its place. It fills in the fields of the manifest above Created. The sections
// come in the order in which they are to be in the file.
//
// It waits for the disk; the guest may run meanwhile.
func (w *Writer) Commit(m Manifest, sections []Section) error {
	if failure := w.failure.Load(); failure != nil {
		return *failure
	}
	if err := w.commit(m, sections); err != nil {
		return w.fail(fmt.Errorf("finish snapshot %s: %w", w.place.dir, explain(err)))
	}
	w.close()
	return nil
}

func (w *Writer) commit(m Manifest, sections []Section) error {
	m.Format, m.ID, m.Kind, m.Base, m.Memory = w.manifest.Format, w.manifest.ID, w.manifest.Kind, w.manifest.Base, w.manifest.Memory
	manifest, err := m.encode()
	if err != nil {
		return fmt.Errorf("%s: %w", ManifestFile, err)
	}
	if err := checkSections(sections); err != nil {
		return err
	}
	k := seal{id: w.id, manifestSize: uint32(len(manifest)), manifestCRC: checksum(manifest)}
	for _, file := range []struct {
		name  string
		write func(io.Writer) error
	}{
		{SumsFile, func(f io.Writer) error {
			return w.table(sumsMagic, ChunkSize).write(f, w.summer.chunks(w.sums))
		}},
		{PagesFile, func(f io.Writer) error {
			return w.table(pagesMagic, PageSize).write(f, w.pages())
		}},
		{ManifestFile, func(f io.Writer) error {
			_, err := f.Write(manifest)
			return err
		}},
		{StateFile, func(f io.Writer) error { return writeState(f, k, sections) }},
	} {
		if file.name == PagesFile && m.Kind != Diff {
			continue
		}
		if err := w.writeFile(file.name, file.write); err != nil {
			return err
		}
	}
	for _, f := range append(w.extra, w.mem, w.place.tmp) {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return w.place.publish()
}

func (w *Writer) table(magic string, unit uint32) table {
	return table{magic: magic, unit: unit, id: w.id, size: w.manifest.Memory.Size}
}

// pages are the entries of memory.pages.
func (w *Writer) pages() []byte {
	words := make([]uint64, (w.contained.Pages()+63)/64)
	w.contained.Drain(words)
	entries := make([]byte, 0, 8*len(words))
	for _, word := range words {
		entries = binary.LittleEndian.AppendUint64(entries, word)
	}
	return entries
}

// writeFile makes a small file and puts it on the disk.
func (w *Writer) writeFile(name string, write func(io.Writer) error) error {
	f, err := w.place.create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Sync(), f.Close())
}
