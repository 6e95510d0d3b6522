//! What the fields of lists of pairs and of images are called, in published sets and in folders that people keep.

use crate::schema::{images, pairs, prompts};

crate::names! {
    /// What a field is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Role {
        Caption = "caption" | "prompt",
        Zero = "jpg_0",
        One = "jpg_1",
        Label = "label_0",
        Winner = "winner",
        Loser = "loser",
        /// The image of an images table
        Image = "image",
    }
}

impl Role {
    /// How fields with this role are called.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Caption => &[pairs::CAPTION, prompts::PROMPT, "text", "original_prompt", "txt"],
            Self::Zero => &[pairs::JPG[0], "image_0", "image0", "img_0", "image_a", "image_left", "0"],
            Self::One => &[pairs::JPG[1], "image_1", "image1", "img_1", "image_b", "image_right", "1"],
            Self::Label => &[pairs::LABEL[0]],
            Self::Winner => &WINNERS,
            Self::Loser => &LOSERS,
            Self::Image => &[images::IMAGE, "file_name", "image_path", "file", "path", "jpg", "png", "webp"],
        }
    }
}

/// Names of the preferred image and of the other one, at equal places. `path1` and `path2` are HPDv3's.
pub const WINNERS: [&str; 11] = [
    "winner", "chosen", "preferred", "win", "w", "path1", "image_w", "jpg_w", "win_image", "winner_image",
    "chosen_image",
];
pub const LOSERS: [&str; 11] = [
    "loser", "rejected", "dispreferred", "lose", "l", "path2", "image_l", "jpg_l", "lose_image", "loser_image",
    "rejected_image",
];

/// Lists of images of one prompt, and what says which is better: HPDv1's, HPDv2's and ImageReward's.
pub const LISTS: [&str; 4] = ["image_path", "file_path", "images", "generations"];

/// The two roles that make a pair; the first that are there count.
pub const SIDES: [[Role; 2]; 2] = [[Role::Zero, Role::One], [Role::Winner, Role::Loser]];

/// The fields with the two images of a pair, among fields of these names.
pub fn sides<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<[&'a str; 2]> {
    let find =
        |role: Role| role.names().iter().find_map(|known| names.clone().find(|name| name.eq_ignore_ascii_case(known)));
    SIDES.iter().find_map(|[one, other]| Some([find(*one)?, find(*other)?]))
}
