package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/statejson"
)

// settleMACs gives the network cards of a restored guest the addresses that the guest
// knows them by, or new ones, of which it has to be told.
func (v *VM) settleMACs(c *Config, s *machine.State, r LoadRequest) error {
	var name string
	if r.NewMACs {
		known, err := v.identity()
		if err != nil {
			return err
		}
		name = known.Name
	}
	for i := range c.Nets {
		var card *machine.VirtioState
		for k := range s.Virtio {
			if s.Virtio[k].Name == fmt.Sprintf("network card %d", i) {
				card = &s.Virtio[k]
			}
		}
		if card == nil {
			return fmt.Errorf("nothing is saved of network card %d", i)
		}
		var state virtionet.State
		if err := statejson.Unmarshal(card.Device, &state); err != nil {
			return fmt.Errorf("network card %d: %w", i, err)
		}
		if old := state.MAC; r.NewMACs {
			state.MAC = virtionet.DefaultMAC(name, i)
			var err error
			if card.Device, err = json.Marshal(state); err != nil {
				return err
			}
			if r.MACChanged != nil {
				r.MACChanged(old, state.MAC)
			}
		}
		c.Nets[i].MAC = state.MAC
	}
	return nil
}

// overlay has a disk that others may have too take its writes elsewhere.
func (v *VM) overlay(d *Drive, id string, r LoadRequest) error {
	switch {
	case d.ReadOnly:
	case r.Ephemeral:
		d.Overlay, d.Scratch = "", blk.NewScratch(r.Overlays)
	case r.Overlays != "":
		known, err := v.identity()
		if err != nil {
			return err
		}
		d.Overlay = filepath.Join(r.Overlays, known.Name+"-"+id+".overlay")
		// What another guest has written there is nothing for this one.
		if _, err := os.Lstat(d.Overlay); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("overlay %s is there already (%v): remove it, or give another folder", d.Overlay, err)
		}
	}
	return nil
}
