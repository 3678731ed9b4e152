package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
)

// superblock says which file system it is.
type superblock struct{ uuid, label string }

// Where these are in the superblock of ext2, ext3 and ext4, and where that is on
// the device (the kernel's Documentation/filesystems/ext4/super.rst).
const (
	extSuperblock = 1024
	extMagicAt    = 0x38
	extMagic      = 0xef53
	extUUIDAt     = 0x68
	extLabelAt    = 0x78
	extLabelSize  = 16
)

// readSuperblock reads the superblock of an ext file system.
func readSuperblock(device string) (superblock, error) {
	f, err := os.Open(device)
	if err != nil {
		return superblock{}, err
	}
	defer f.Close()
	b := make([]byte, extLabelAt+extLabelSize)
	if _, err := f.ReadAt(b, extSuperblock); err != nil {
		return superblock{}, err
	}
	return parseSuperblock(b)
}

func parseSuperblock(b []byte) (superblock, error) {
	if binary.LittleEndian.Uint16(b[extMagicAt:]) != extMagic {
		return superblock{}, errors.New("no ext file system")
	}
	label, _, _ := bytes.Cut(b[extLabelAt:extLabelAt+extLabelSize], []byte{0})
	u := hex.EncodeToString(b[extUUIDAt : extUUIDAt+16])
	return superblock{
		uuid:  u[:8] + "-" + u[8:12] + "-" + u[12:16] + "-" + u[16:20] + "-" + u[20:],
		label: string(label),
	}, nil
}
