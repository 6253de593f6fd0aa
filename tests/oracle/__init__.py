"""Every rule against others' code: byzfl and byzpy where they have it, the papers' own wording where they do not."""
